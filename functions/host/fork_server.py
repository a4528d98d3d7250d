"""Starts processes by fork: `python -m functions.host.fork_server PROGRAM [MODULE ...]`.

The server has imported the module PROGRAM, whose `main()` is what each process runs, and the modules that
this needs. So a process starts in milliseconds, and shares the memory of all that is imported. The server
holds no settings, secrets or sockets of the processes, and has one thread: a fork copies no other.

Its standard input is a socket of whole messages (SOCK_SEQPACKET), on which it answers one request after the
other, all in JSON. It says `{"ready": true}` first. It ends with the socket, or with whoever started it.

{"run": {"title", "environment"}}   with three files: standard input, output, and a listening socket. Answered
                                    with {"pid"}, {"outdated": true} if a file that was imported has changed,
                                    or {"error"} if the system has no room for a process.
{"wait": PID}                       once the process has ended. Answered with {"returncode"}, negative for a
                                    signal. Until then it is a zombie, and its id is not used again.
"""

import gc
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

from functions.contract.process import LISTEN_FD_VARIABLE
from functions.host.process_lists import ProcessLists
from functions.host.supervisor import die_with_parent

MAX_MESSAGE_BYTES = 128 << 10
ROOM_VARIABLE = "FAASMOE_FORK_SERVER_ROOM"
"""Set to any text when the server is started: as many bytes can be shown of its processes' environments."""
_FILES = 3


class ForkServer:
    """Answers requests, and runs `program` in the processes that it forks."""

    def __init__(self, channel: socket.socket, program: Callable[[], int]) -> None:
        self._channel = channel
        self._program = program
        self._code = ImportedCode()
        self._lists = ProcessLists()

    def serve(self) -> None:
        """Answer requests until the channel ends."""
        self._channel.send(json.dumps({"ready": True}).encode())
        while True:
            message, files, _, _ = socket.recv_fds(self._channel, MAX_MESSAGE_BYTES, _FILES)
            if not message:
                return
            try:
                answer = self._answer(json.loads(message), files)
            finally:
                for file in files:
                    os.close(file)
            self._channel.send(json.dumps(answer).encode())

    def _answer(self, request: dict[str, Any], files: Sequence[int]) -> dict[str, Any]:
        if "wait" in request:
            return {"returncode": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
        if self._code.has_changed():
            return {"outdated": True}
        try:
            pid = os.fork()
        except OSError as error:
            return {"error": str(error)}
        if pid == 0:
            self._run(files, **request["run"])
        # By both, so that the group is there for whoever of them needs it first.
        os.setpgid(pid, pid)
        return {"pid": pid}

    def _run(self, files: Sequence[int], title: str, environment: dict[str, str]) -> NoReturn:
        """Become the process."""
        code = 1
        try:
            os.setpgid(0, 0)
            die_with_parent()
            self._channel.close()
            stdin, output, listener = files
            for source, target in ((stdin, 0), (output, 1), (output, 2)):
                os.dup2(source, target)
            os.close(stdin)
            os.close(output)
            os.environ.clear()
            os.environ.update(environment, **{LISTEN_FD_VARIABLE: str(listener)})
            self._lists.show(title, os.environ)
            gc.enable()
            code = self._program()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)


class ImportedCode:
    """The files that modules were imported from, and how they were then."""

    def __init__(self) -> None:
        files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        # Copies: reading the modules' own texts would write to many pages, to count references.
        self._stamps = [(file.encode(), _stamp(file)) for file in files if file]

    def has_changed(self) -> bool:
        return any(_stamp(file) != stamp for file, stamp in self._stamps)


def _stamp(file: str | bytes) -> tuple[int, int, int] | None:
    """What differs after a file was changed or replaced; None for a file that is not there."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def main() -> int:
    """Serve on standard input; returns the exit code."""
    die_with_parent()
    channel = socket.socket(fileno=os.dup(0))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    program, *modules = sys.argv[1:]
    for module in modules:
        import_module(module)
    run = import_module(program).main
    if threads := len(os.listdir("/proc/self/task")) - 1:
        print(f"functions are not forked: their imports have started {threads} threads", file=sys.stderr)
        return 1
    # Collecting garbage writes to all objects. The processes do not collect what they share, and copy less.
    gc.collect()
    gc.disable()
    gc.freeze()
    # The one who started it may end at any time.
    with suppress(BrokenPipeError, ConnectionResetError):
        ForkServer(channel, run).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
