"""ServeConfig: the config file, overrides by the command line, and errors that name the setting."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from control_plane.config import ServeConfig, _Seconds, _SecondsOrZero
from control_plane.errors import ConfigError

NO_OVERRIDES: dict[str, Any] = {"host": None, "port": None, "kv_cache_mb": None, "threads": None}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "faasmoe.yml"


def refusal(file: Path, text: str, overrides: dict[str, Any] = NO_OVERRIDES) -> str:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        ServeConfig.load(file, overrides)
    return str(caught.value)


def test_defaults() -> None:
    assert ServeConfig.load(None, NO_OVERRIDES) == ServeConfig()


def test_the_command_line_overrides_the_file_and_the_file_overrides_defaults(file: Path) -> None:
    file.write_text("port: 9000\nthreads: 3\ninvocation_timeout: 5\n")
    config = ServeConfig.load(file, {**NO_OVERRIDES, "port": 9001, "threads": 0})
    assert config == ServeConfig(port=9001, threads=0, invocation_timeout=5)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_an_empty_file_sets_nothing(file: Path, text: str) -> None:
    file.write_text(text)
    assert ServeConfig.load(file, NO_OVERRIDES) == ServeConfig()


@pytest.mark.parametrize("name", ["prot", "kv-cache-mb", "1"])
def test_the_error_for_an_unknown_setting_lists_the_known_ones(file: Path, name: str) -> None:
    message = refusal(file, f"{name}: 1")
    assert message.startswith(f"{file}: unknown setting ")
    assert name in message
    assert "host, port, max_batch_tokens" in message


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("host", "5", "a string"),
        ("port", "'8000'", "a whole number from 0 to 65535"),
        ("port", "80.5", "a whole number from 0 to 65535"),
        ("port", "yes", "a whole number from 0 to 65535"),
        ("port", "null", "a whole number from 0 to 65535"),
        ("threads", "[1]", "a whole number, zero or more"),
        ("invocation_timeout", "soon", "a duration such as 90s or 15m, above zero"),
        ("invocation_timeout", "true", "a duration such as 90s or 15m, above zero"),
        ("open", "1", "true or false"),
        ("strict_fields", "1", "true or false"),
        ("log_prompts", "'no'", "true or false"),
        ("database", "5", "a string"),
        ("sampling_defaults", "true", "one of model, none"),
        ("sampling_defaults", "vllm", "one of model, none"),
    ],
)
def test_wrong_types(file: Path, name: str, value: str, wanted: str) -> None:
    assert refusal(file, f"{name}: {value}").startswith(f"{file}: {name} must be {wanted}, not ")


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("port: -1", "port must be a whole number from 0 to 65535, not -1"),
        ("port: 65536", "port must be a whole number from 0 to 65535, not 65536"),
        ("threads: -1", "threads must be a whole number, zero or more, not -1"),
        ("kv_cache_mb: 0", "kv_cache_mb must be a whole number above zero, not 0"),
        ("max_sequences: -2", "max_sequences must be a whole number above zero, not -2"),
        ("max_batch_tokens: 0", "max_batch_tokens must be a whole number above zero, not 0"),
        (
            "invocation_timeout: 0.0",
            "invocation_timeout must be a duration such as 90s or 15m, above zero, not 0.0",
        ),
        (
            "invocation_timeout: .nan",
            "invocation_timeout must be a duration such as 90s or 15m, above zero, not nan",
        ),
        (
            "invocation_deadline: .inf",
            "invocation_deadline must be a duration such as 90s or 15m, above zero, not inf",
        ),
        ("max_queued: 0", "max_queued must be a whole number above zero, not 0"),
        ("max_queued_per_tenant: 0", "max_queued_per_tenant must be a whole number above zero, not 0"),
        ("request_timeout: 0", "request_timeout must be a duration such as 90s or 15m, above zero, not 0"),
        (
            "memory_budget: 0",
            "memory_budget must be bytes, such as 6GB, 512MiB or 6000000000, above zero, not 0",
        ),
        ("idle_timeout: 0", "idle_timeout must be a duration such as 90s or 15m, above zero, not 0"),
        (
            "drain_seconds: -0.5",
            "drain_seconds must be a duration such as 90s or 15m, zero or more, not -0.5",
        ),
        ("drain_seconds: .inf", "drain_seconds must be a duration such as 90s or 15m, zero or more, not inf"),
        (
            "max_queued: 100000000000000000000",
            "max_queued must be a whole number above zero, not 100000000000000000000",
        ),
        ("scheduling: random", "scheduling must be one of fair, fcfs, not 'random'"),
        ("log_level: loud", "log_level must be one of debug, info, warning, error, not 'loud'"),
    ],
)
def test_values_out_of_range(file: Path, setting: str, problem: str) -> None:
    assert refusal(file, setting) == f"{file}: {problem}"


@pytest.mark.parametrize(
    ("text", "budget", "timeout"),
    [
        ("memory_budget: 6GB\nidle_timeout: 60s", 6 * 10**9, 60.0),
        ("memory_budget: 6000000000\nidle_timeout: 60", 6 * 10**9, 60.0),
        ("batch_storage: 0\nmemory_budget: 6GB\nidle_timeout: 60s", 6 * 10**9, 60.0),
        ("memory_budget: '1.5GiB'\nidle_timeout: 0.5", 3 * 2**29, 0.5),
        ("", None, 900.0),
    ],
)
def test_amounts_may_have_a_unit(file: Path, text: str, budget: int | None, timeout: float) -> None:
    file.write_text(text)
    config = ServeConfig.load(file, NO_OVERRIDES)
    assert (config.memory_budget, config.idle_timeout) == (budget, timeout)


DURATIONS = [setting.name for setting in fields(ServeConfig) if setting.type in (_Seconds, _SecondsOrZero)]


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3s", 3.0), ("1m30s", 90.0), ("500ms", 0.5), ("7", 7.0), ("0.5", 0.5), ("'8'", 8.0)],
)
def test_every_duration_may_have_a_unit(file: Path, name: str, text: str, seconds: float) -> None:
    file.write_text(f"{name}: {text}")
    assert getattr(ServeConfig.load(file, NO_OVERRIDES), name) == seconds


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("text", ["soon", "3 s", "-3s", "3d", "[3]", "true", "null", ".inf", "1e3s"])
def test_a_bad_duration_is_refused_with_the_setting_s_name(file: Path, name: str, text: str) -> None:
    message = refusal(file, f"{name}: {text}")
    assert message.startswith(f"{file}: {name} must be a duration such as 90s or 15m, ")


def test_all_durations_are_held() -> None:
    assert {"idle_timeout", "invocation_timeout", "request_timeout", "drain_seconds"} < set(DURATIONS)


@pytest.mark.parametrize("text", ["0", "0s", "0.0"])
def test_draining_may_take_no_time(file: Path, text: str) -> None:
    file.write_text(f"drain_seconds: {text}")
    assert ServeConfig.load(file, NO_OVERRIDES).drain_seconds == 0
    assert "idle_timeout must be a duration" in refusal(file, f"idle_timeout: {text}")


@pytest.mark.parametrize("text", ["lots", "-5", "true", "[6]"])
def test_a_bad_budget(file: Path, text: str) -> None:
    assert refusal(file, f"memory_budget: {text}").startswith(
        f"{file}: memory_budget must be bytes, such as 6GB"
    )


def test_networks_of_functions(file: Path) -> None:
    file.write_text("function_networks: [10.62.0.0/16, 'fd00::/8', 8.8.8.8]")
    networks = ServeConfig.load(file, NO_OVERRIDES).function_networks
    assert list(networks) == ["10.62.0.0/16", "fd00::/8", "8.8.8.8"]
    for wrong in ("10.62.0.1/16", "10.62", "pods"):
        assert "function_networks: " in refusal(file, f"function_networks: [{wrong!r}]")
    assert "function_networks" in refusal(file, "function_networks: 10.0.0.0/8")


@pytest.mark.parametrize(
    ("setting", "good", "wrong"),
    [
        (
            "cors_origins",
            ["https://chat.example.com", "http://10.0.0.5:3000", "chrome-extension://abc", "*"],
            ["chat.example.com", "https://a.b/", "https://a.b/c", "https://*.a.b", "HTTPS://A.B", "", "null"],
        ),
        (
            "served_model_names",
            ["gpt-4o", "lab/model:1b", "claude-sonnet-4-5@20250929", "a" * 200],
            ["", "/", "a/", "/a", "a//b", "two words", "a\n", "a" * 201],
        ),
    ],
)
def test_lists_of_names(file: Path, setting: str, good: list[str], wrong: list[str]) -> None:
    file.write_text(f"{setting}: {json.dumps(good)}")
    assert list(getattr(ServeConfig.load(file, NO_OVERRIDES), setting)) == good
    assert list(getattr(ServeConfig.load(file, {setting: (good[0],)}), setting)) == good[:1]
    for each in wrong:
        assert f"{setting} must be a list of " in refusal(file, f"{setting}: {json.dumps([each])}")
    assert f"{setting} must be " in refusal(file, f"{setting}: {json.dumps(good[0])}")


@pytest.mark.parametrize("port", [0, 65535])
def test_ports_at_the_edge(file: Path, port: int) -> None:
    file.write_text(f"port: {port}")
    assert ServeConfig.load(file, NO_OVERRIDES).port == port


def test_overrides_are_checked_too(file: Path) -> None:
    message = refusal(file, "kv_cache_mb: 5", {**NO_OVERRIDES, "kv_cache_mb": -5})
    assert message == "kv_cache_mb must be a whole number above zero, not -5"


def test_settings_for_many_tenants(file: Path) -> None:
    file.write_text(
        "open: true\ndatabase: /var/lib/faasmoe.db\nmax_queued: 9\nmax_queued_per_tenant: 3\n"
        "scheduling: fcfs\nrequest_timeout: 5\ndrain_seconds: 0\nlog_level: debug\nlog_prompts: true\n"
    )
    assert ServeConfig.load(file, NO_OVERRIDES) == ServeConfig(
        open=True,
        database="/var/lib/faasmoe.db",
        max_queued=9,
        max_queued_per_tenant=3,
        scheduling="fcfs",
        request_timeout=5,
        drain_seconds=0,
        log_level="debug",
        log_prompts=True,
    )


LOOPBACK = ["127.0.0.1", "127.8.9.10", "::1", "localhost"]
REACHABLE = ["0.0.0.0", "::", "192.168.1.5", "edge.example", ""]


@pytest.mark.parametrize("host", LOOPBACK)
def test_a_server_may_be_open_on_loopback(host: str) -> None:
    assert ServeConfig(host=host, open=True).open


@pytest.mark.parametrize("host", REACHABLE)
def test_a_server_may_not_be_open_elsewhere(host: str) -> None:
    with pytest.raises(ConfigError, match=r"^open: .*loopback"):
        ServeConfig(host=host, open=True)


@pytest.mark.parametrize(
    ("text", "overrides", "open_"),
    [
        ("", {}, True),
        ("host: 0.0.0.0", {}, False),
        ("host: 0.0.0.0", {"host": "::1"}, True),
        ("", {"host": "0.0.0.0"}, False),
        ("open: false", {}, False),
        ("open: false", {"open": True}, True),
        ("", {"open": False}, False),
        ("open: true", {"host": "0.0.0.0", "open": False}, False),
    ],
)
def test_open_by_default_on_loopback(file: Path, text: str, overrides: dict[str, Any], open_: bool) -> None:
    file.write_text(text)
    assert ServeConfig.load(file, overrides, open_on_loopback=True).open is open_


@pytest.mark.parametrize("text", ["port: [", "port: 1\n\tthreads: 2", "a: b: c", "\x00"])
def test_a_file_that_is_not_yaml_is_reported_in_one_line(file: Path, text: str) -> None:
    message = refusal(file, text)
    assert message.startswith(f"{file} is not YAML: ")
    assert "\n" not in message


@pytest.mark.parametrize("text", ["just text", "- port", "5"])
def test_yaml_that_is_not_a_mapping(file: Path, text: str) -> None:
    assert refusal(file, text) == f"{file} must hold settings, one `name: value` a line"


def test_a_file_that_cannot_be_read(file: Path) -> None:
    with pytest.raises(ConfigError, match=f"cannot read {file}"):
        ServeConfig.load(file, NO_OVERRIDES)
    file.write_bytes(b"host: \xff")
    with pytest.raises(ConfigError, match=f"cannot read {file}"):
        ServeConfig.load(file, NO_OVERRIDES)


LAUGHS = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)), "port: *a59"]
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LAUGHS, " is not YAML: it has more than 100000 values"),
        ("port: &a [*a]", " is not YAML: it has more than 100000 values"),
        ("[" * 5000, " is nested too deeply"),
        ("port: " + "[" * 50 + "]" * 50, ": port must be a whole number from 0 to 65535, not [[["),
        ("port: " + "{a: " * 5000 + "}" * 5000, " is nested too deeply"),
        ("port: " + "1" * 5000, " is not YAML: Exceeds the limit"),
        ("port: 2026-99-99", " is not YAML: month must be"),
        ("host: " + "a" * (1 << 20), " has more than 1048576 bytes"),
        ("port: 1\nport: 2", " is not YAML: 'port' is there twice"),
        ("? [a]\n: b", " is not YAML: "),
        ("a" * 1000 + ": 1", ": unknown setting 'aaa"),
        ("kv_cache_mb: " + "a" * 5000, ": kv_cache_mb must be a whole number above zero, not 'aaa"),
        ("!!python/object/apply:os.system [id]", " is not YAML: could not determine a constructor"),
    ],
    ids=lambda text: text[:12],
)
def test_hostile_yaml(file: Path, text: str, problem: str) -> None:
    message = refusal(file, text)
    assert message.startswith(f"{file}{problem}")
    assert len(message) < len(str(file)) + 1000


def test_aliases_and_merged_mappings(file: Path) -> None:
    file.write_text(
        "tenants:\n  - &base {name: a, rpm: 5}\n  - {<<: *base, name: b}\nport: &port 1\nthreads: *port\n"
    )
    config = ServeConfig.load(file, NO_OVERRIDES)
    assert (config.port, config.threads) == (1, 1)
    assert [(tenant.name, tenant.limits.rpm) for tenant in config.tenants] == [("a", 5), ("b", 5)]
