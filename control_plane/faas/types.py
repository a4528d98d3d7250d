"""The messages of the OpenFaaS REST API.

Field names follow https://github.com/openfaas/faas-provider/tree/master/types and its `logs` package.
`from_json` takes decoded JSON and raises `Invalid`, naming the field, for a wrong type; a missing field and
null both mean the default, and unknown fields are ignored. `to_json` leaves out empty fields, like OpenFaaS.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Self

import msgspec

from control_plane.validation import convert

DEFAULT_NAMESPACE = "openfaas-fn"

MAX_COUNT = 2**63 - 1
Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT, description="a whole number, zero or more")]
Time = Annotated[datetime, msgspec.Meta(tz=True, description="an RFC 3339 time")]

_Amount = Annotated[float, msgspec.Meta(ge=0, le=MAX_COUNT, description="a number, zero or more")]

_NESTED = frozenset({"limits", "requests", "usage"})
"""The fields that are messages themselves."""
_NANOSECONDS = re.compile(r"(\.\d{6})\d+")


class ApiMessage(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A JSON object whose keys are the fields' names in camel case."""

    @classmethod
    def from_json(cls, data: object) -> Self:
        return convert(go_json(data), cls)

    def to_json(self) -> dict[str, Any]:
        written: dict[str, Any] = msgspec.to_builtins(self, builtin_types=(datetime,))
        return {name: _plain(value) for name, value in written.items() if value not in ("", {}, ())}


class FunctionResources(ApiMessage, frozen=True):
    """Memory ("128Mi") and CPU ("500m") in Kubernetes' notation."""

    memory: str = ""
    cpu: str = ""


class FunctionDeployment(ApiMessage, frozen=True):
    """The specification of one function: the body of POST and PUT `/system/functions`."""

    service: str = ""
    image: str = ""
    namespace: str = ""
    env_process: str = ""
    env_vars: Mapping[str, str] = msgspec.field(default_factory=dict)
    constraints: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    annotations: Mapping[str, str] = msgspec.field(default_factory=dict)
    limits: FunctionResources | None = None
    requests: FunctionResources | None = None
    read_only_root_filesystem: bool = False


class FunctionUsage(ApiMessage, frozen=True, omit_defaults=False):
    """Resources over all replicas: CPU in millicores since the last measurement, and memory in bytes."""

    cpu: _Amount = 0.0
    total_memory_bytes: _Amount = 0.0


class _Counters(ApiMessage, frozen=True):
    """The fields of a `FunctionStatus` that a deployment does not have."""

    replicas: Count = 0
    available_replicas: Count | None = None
    invocation_count: Count = 0
    created_at: Time | None = None
    usage: FunctionUsage | None = None


@dataclass(frozen=True)
class FunctionStatus:
    """A deployed function: the wanted number of `replicas`, and how many of them take calls now."""

    deployment: FunctionDeployment
    replicas: int = 0
    available_replicas: int = 0
    invocation_count: int = 0
    created_at: datetime | None = None
    usage: FunctionUsage | None = None

    @property
    def name(self) -> str:
        return self.deployment.service

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read the API's flat object: a deployment whose `service` is called `name`, and counters.

        faasd does not say how many replicas are available: then all of them are.
        """
        counters = msgspec.structs.asdict(_Counters.from_json(data))
        if counters["available_replicas"] is None:
            counters["available_replicas"] = counters["replicas"]
        renamed = {**data, "service": data.get("name")} if isinstance(data, dict) else data
        return cls(FunctionDeployment.from_json(renamed), **counters)

    def to_json(self) -> dict[str, Any]:
        """Counts are written even when they are zero, for readers who use curl."""
        fields = self.deployment.to_json()
        counters = _Counters(created_at=self.created_at, usage=self.usage).to_json()
        return {
            "name": fields.pop("service", ""),
            **fields,
            "replicas": self.replicas,
            "availableReplicas": self.available_replicas,
            "invocationCount": self.invocation_count,
            **counters,
        }


class ScaleServiceRequest(ApiMessage, frozen=True, omit_defaults=False):
    """The body of POST `/system/scale-function/{name}`."""

    service_name: str = ""
    replicas: Count = 0
    namespace: str = ""


class DeleteFunctionRequest(ApiMessage, frozen=True):
    """The body of DELETE `/system/functions`."""

    function_name: str = ""
    namespace: str = ""


class _SecretBody(ApiMessage, frozen=True):
    name: str = ""
    namespace: str = ""
    value: str = ""
    raw_value: Annotated[bytes, msgspec.Meta(description="base64")] = b""


@dataclass(frozen=True)
class Secret:
    """A secret. Its value is written, but never read back."""

    name: str
    namespace: str = ""
    value: bytes = field(default=b"", repr=False)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """The value comes as `rawValue`, in base64, or as `value`, a text."""
        body = _SecretBody.from_json(data)
        return cls(body.name, body.namespace, body.raw_value or body.value.encode())

    def to_json(self) -> dict[str, Any]:
        return _SecretBody(self.name, self.namespace).to_json()


@dataclass(frozen=True)
class LogMessage:
    """One line that a function has written; `instance` identifies its process."""

    name: str
    namespace: str
    instance: str
    timestamp: datetime
    text: str

    def to_json(self) -> dict[str, Any]:
        return {name: _plain(value) for name, value in vars(self).items()}


def go_json(data: object) -> object:
    """A JSON value from a Go program in the form that `convert` takes.

    Go sends null for an empty list or map; here this means a missing field. Whole numbers may be written as
    1.0. Times have nanoseconds, or are empty.
    """
    if not isinstance(data, dict):
        return data
    fields = {name: _field(name, value) for name, value in data.items()}
    return {name: value for name, value in fields.items() if value is not None}


def _field(name: str, value: object) -> object:
    if name == "createdAt" and isinstance(value, str):
        return to_microseconds(value) or None
    if isinstance(value, float) and value.is_integer() and value <= MAX_COUNT:
        return int(value)
    return go_json(value) if name in _NESTED else value


def _plain(value: object) -> object:
    """A value as `json` writes it."""
    if isinstance(value, datetime):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value


def to_microseconds(text: str) -> str:
    """Cut off nanoseconds, which msgspec would round."""
    return _NANOSECONDS.sub(r"\1", text)
