"""What travels over the OpenFaaS REST API, as frozen dataclasses.

Field names follow https://github.com/openfaas/faas-provider/tree/master/types and its `logs` package.
`from_json` takes decoded JSON and raises ValueError, naming the field, where a type is wrong; a field
that is missing or null has its default. `to_json` leaves out what is empty, as OpenFaaS does.
"""

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self, TypeVar

from control_plane.faas.json_fields import (
    Json,
    as_object,
    count,
    flag,
    number,
    text,
    text_list,
    text_map,
    time,
)

DEFAULT_NAMESPACE = "openfaas-fn"

T = TypeVar("T")


@dataclass(frozen=True)
class FunctionResources:
    """Memory ("128Mi") and CPU ("500m") in Kubernetes' notation."""

    memory: str = ""
    cpu: str = ""

    @classmethod
    def from_json(cls, data: object) -> Self:
        fields = as_object(data, "resources")
        return cls(memory=text(fields, "memory"), cpu=text(fields, "cpu"))

    def to_json(self) -> dict[str, Any]:
        return _filled(memory=self.memory, cpu=self.cpu)


@dataclass(frozen=True)
class FunctionDeployment:
    """The specification of one function: the body of POST and PUT `/system/functions`."""

    service: str
    image: str
    namespace: str = ""
    env_process: str = ""
    env_vars: Mapping[str, str] = field(default_factory=dict)
    constraints: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    limits: FunctionResources | None = None
    requests: FunctionResources | None = None
    read_only_root_filesystem: bool = False

    @classmethod
    def from_json(cls, data: object) -> Self:
        fields = as_object(data, "function")
        return cls(
            service=text(fields, "service"),
            image=text(fields, "image"),
            namespace=text(fields, "namespace"),
            env_process=text(fields, "envProcess"),
            env_vars=text_map(fields, "envVars"),
            constraints=text_list(fields, "constraints"),
            secrets=text_list(fields, "secrets"),
            labels=text_map(fields, "labels"),
            annotations=text_map(fields, "annotations"),
            limits=_optional(FunctionResources.from_json, fields, "limits"),
            requests=_optional(FunctionResources.from_json, fields, "requests"),
            read_only_root_filesystem=flag(fields, "readOnlyRootFilesystem"),
        )

    def to_json(self) -> dict[str, Any]:
        return _filled(
            service=self.service,
            image=self.image,
            namespace=self.namespace,
            envProcess=self.env_process,
            envVars=dict(self.env_vars),
            constraints=list(self.constraints),
            secrets=list(self.secrets),
            labels=dict(self.labels),
            annotations=dict(self.annotations),
            limits=self.limits and self.limits.to_json(),
            requests=self.requests and self.requests.to_json(),
            readOnlyRootFilesystem=self.read_only_root_filesystem,
        )


@dataclass(frozen=True)
class FunctionUsage:
    """CPU in millicores since the last measurement, and memory in bytes, over all replicas."""

    cpu: float
    total_memory_bytes: float

    @classmethod
    def from_json(cls, data: object) -> Self:
        fields = as_object(data, "usage")
        return cls(cpu=number(fields, "cpu"), total_memory_bytes=number(fields, "totalMemoryBytes"))

    def to_json(self) -> dict[str, Any]:
        return {"cpu": self.cpu, "totalMemoryBytes": self.total_memory_bytes}


@dataclass(frozen=True)
class FunctionStatus:
    """A deployed function: `replicas` are wanted, `available_replicas` take calls right now."""

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
        fields = as_object(data, "function status")
        return cls(
            deployment=FunctionDeployment.from_json({**fields, "service": fields.get("name")}),
            replicas=count(fields, "replicas"),
            available_replicas=count(fields, "availableReplicas"),
            invocation_count=count(fields, "invocationCount"),
            created_at=time(fields, "createdAt"),
            usage=_optional(FunctionUsage.from_json, fields, "usage"),
        )

    def to_json(self) -> dict[str, Any]:
        """Counts are written even when zero: a reader with curl should see them."""
        fields = self.deployment.to_json()
        name = fields.pop("service", "")
        return {
            "name": name,
            **fields,
            "replicas": self.replicas,
            "availableReplicas": self.available_replicas,
            "invocationCount": self.invocation_count,
            **_filled(
                createdAt=self.created_at and self.created_at.isoformat(),
                usage=self.usage and self.usage.to_json(),
            ),
        }


@dataclass(frozen=True)
class ScaleServiceRequest:
    """The body of POST `/system/scale-function/{name}`."""

    service_name: str
    replicas: int
    namespace: str = ""

    @classmethod
    def from_json(cls, data: object) -> Self:
        fields = as_object(data, "scale request")
        return cls(
            service_name=text(fields, "serviceName"),
            replicas=count(fields, "replicas"),
            namespace=text(fields, "namespace"),
        )

    def to_json(self) -> dict[str, Any]:
        named = _filled(serviceName=self.service_name, namespace=self.namespace)
        return {**named, "replicas": self.replicas}


@dataclass(frozen=True)
class DeleteFunctionRequest:
    """The body of DELETE `/system/functions`."""

    function_name: str
    namespace: str = ""

    @classmethod
    def from_json(cls, data: object) -> Self:
        fields = as_object(data, "delete request")
        return cls(function_name=text(fields, "functionName"), namespace=text(fields, "namespace"))

    def to_json(self) -> dict[str, Any]:
        return _filled(functionName=self.function_name, namespace=self.namespace)


@dataclass(frozen=True)
class Secret:
    """A secret: its value goes in, and never comes out again."""

    name: str
    namespace: str = ""
    value: bytes = field(default=b"", repr=False)

    @classmethod
    def from_json(cls, data: object) -> Self:
        fields = as_object(data, "secret")
        try:
            raw = base64.b64decode(text(fields, "rawValue"), validate=True)
        except binascii.Error as error:
            raise ValueError(f"rawValue: not base64: {error}") from None
        return cls(
            name=text(fields, "name"),
            namespace=text(fields, "namespace"),
            value=raw or text(fields, "value").encode(),
        )

    def to_json(self) -> dict[str, Any]:
        return _filled(name=self.name, namespace=self.namespace)


@dataclass(frozen=True)
class LogMessage:
    """One line that a function wrote; `instance` tells its processes apart."""

    name: str
    namespace: str
    instance: str
    timestamp: datetime
    text: str

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "namespace": self.namespace,
            "instance": self.instance,
            "timestamp": self.timestamp.isoformat(),
            "text": self.text,
        }


def _filled(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def _optional(from_json: Callable[[object], T], fields: Json, name: str) -> T | None:
    value = fields.get(name)
    return None if value is None else from_json(value)
