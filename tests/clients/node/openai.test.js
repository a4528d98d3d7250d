// OpenAI's client for Node, against the server that the environment names.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const { BASE_URL, API_KEY, MODEL, QUESTION, REPORT } = process.env;
const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0 });
const chat = { model: MODEL, messages: [{ role: "user", content: QUESTION }] };
const response = { model: MODEL, input: QUESTION };

const City = z.object({ city: z.string() });
const Forecast = z.object({ city: z.string(), days: z.array(z.string()), degrees: z.number() });
const shortForecast = { city: "", days: [""], degrees: 0 };
const rome = { city: "Rome" };

test("chats", async () => {
  const answer = await client.chat.completions.create(chat);
  assert.equal(answer.choices[0].message.content, REPORT);
  assert.equal(answer.choices[0].finish_reason, "stop");
});

test("streams", async () => {
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...chat, stream: true })) {
    text += chunk.choices[0]?.delta.content ?? "";
  }
  assert.equal(text, REPORT);
  assert.equal(await client.chat.completions.stream(chat).finalContent(), REPORT);
});

test("structured answers", async () => {
  const format = zodResponseFormat(Forecast, "forecast");
  const answer = await client.chat.completions.parse({ ...chat, response_format: format });
  assert.deepEqual(answer.choices[0].message.parsed, shortForecast);
});

for (const stream of [false, true]) {
  test(`tools that the client runs, ${stream ? "streamed" : "whole"}`, async () => {
    const asked = [];
    const getWeather = zodFunction({
      name: "get_weather",
      parameters: City,
      function: (city) => {
        asked.push(city);
        return "sunny";
      },
    });
    const runner = client.chat.completions.runTools({ ...chat, tools: [getWeather], stream });
    assert.equal(await runner.finalContent(), REPORT);
    assert.deepEqual(asked, [rome]);
  });
}

test("responses", async () => {
  assert.equal((await client.responses.create(response)).output_text, REPORT);
  let text = "";
  for await (const event of await client.responses.create({ ...response, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(text, REPORT);
  const format = { format: zodTextFormat(Forecast, "forecast") };
  assert.deepEqual((await client.responses.parse({ ...response, text: format })).output_parsed, shortForecast);
});

test("tools of responses", async () => {
  const parameters = z.toJSONSchema(City);
  const tools = [{ type: "function", name: "get_weather", parameters, strict: true }];
  const [call] = (await client.responses.create({ ...response, tools })).output;
  assert.deepEqual(JSON.parse(call.arguments), rome);
  const result = { type: "function_call_output", call_id: call.call_id, output: "sunny" };
  const input = [{ role: "user", content: QUESTION }, call, result];
  assert.equal((await client.responses.create({ model: MODEL, input, tools })).output_text, REPORT);
});

test("errors", async () => {
  await assert.rejects(client.chat.completions.create({ ...chat, model: "gpt-4o" }), OpenAI.NotFoundError);
  const stranger = new OpenAI({ baseURL: BASE_URL, apiKey: "wrong", maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
});
