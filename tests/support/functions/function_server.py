"""An expert function in this process, served over loopback by C where it can, or by Python alone."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from threading import Thread
from typing import Any

from functions.contract.messages import Invocation, InvocationResult
from functions.contract.process import MAX_BODY_BYTES
from functions.expert.authentication import Authentication
from functions.expert.expert_block import ExpertBlock
from functions.expert.expert_function import ExpertFunction
from functions.expert.fast_calls import fast_path
from functions.http.server import HttpServer
from functions.kernels import load_kernel
from tests.support.models.tiny_partition import TinyPartition

SECONDS = 30.0


@dataclass(frozen=True)
class Answer:
    """The answer to one call over a connection."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def result(self) -> InvocationResult:
        assert self.status == 200, self.body
        return InvocationResult.decode(self.body)


class Caller:
    """One connection to a function."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.connection = HTTPConnection(*address, timeout=SECONDS)

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        self.connection.request("POST", "/", body, dict(headers or {}))
        answer = self.connection.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read())

    def invoke(self, invocation: Invocation, **headers: str) -> InvocationResult:
        return self.post(b"".join(invocation.encode()), headers).result

    def close(self) -> None:
        self.connection.close()


@dataclass(frozen=True)
class FunctionServer:
    """A function, its server, and where that listens."""

    function: ExpertFunction
    block: ExpertBlock
    server: HttpServer
    address: tuple[str, int]

    @contextmanager
    def caller(self) -> Iterator[Caller]:
        with closing(Caller(self.address)) as caller:
            yield caller


@contextmanager
def function_server(
    tiny: TinyPartition,
    *,
    in_c: bool,
    name: str = "",
    authentication: Authentication | None = None,
    kernel: str | None = None,
    limit: int | None = None,
    **options: Any,
) -> Iterator[FunctionServer]:
    """Serve the first function of a partition, or another one, until the context ends."""
    block = ExpertBlock.open(
        tiny.folder, name or tiny.functions[0], load_kernel(kernel), threads=1, limit=limit
    )
    function = ExpertFunction(options.pop("max_in_flight", 32), authentication)
    function.opened(block)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    server = HttpServer(listener, function, MAX_BODY_BYTES)
    if in_c:
        server.fast_path = fast_path(function, block, server.connections)
        assert server.fast_path is not None
    serving = Thread(target=server.serve, args=(SECONDS,))
    serving.start()
    with closing(block.residency):
        try:
            yield FunctionServer(function, block, server, address)
        finally:
            server.stop()
            serving.join(SECONDS)
