"""OpenAI's Python client against FaaSMoE: `python examples/openai_client.py`."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    # The client insists on a key. A server with --open accepts any.
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id
print("model:", model)

completion = client.completions.create(model=model, prompt="And it came to pass", max_tokens=16)
print("completion:", completion.choices[0].text)

print("chat: ", end="")
for chunk in client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Continue: And it came to pass, when"}],
    max_tokens=16,
    stream=True,
):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
