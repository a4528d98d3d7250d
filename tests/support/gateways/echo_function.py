"""A function for the gateway's tests: it returns the body of a call, and misbehaves on request.

It follows the contract of function processes: it serves on the socket that FAASMOE_LISTEN_FD names, and
exits when its stdin ends. It imports only the standard library, so that it starts fast.

    ECHO_CRASH=1            writes a line and exits before it serves
    ECHO_READY_FILE=path    is not ready before that file exists
    ECHO_BANNER=text        writes a line when it starts
    ECHO_STUBBORN=1         ignores SIGTERM

GET /busy?seconds=N computes for that time, and keeps all other threads from running.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class EchoHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        action = {
            "/_/health": self._health,
            "/_/ready": self._ready,
            "/busy": self._busy,
            "/flood": self._flood,
            "/metrics": self._echo,
            "/crash": self._crash,
            "/half": self._half,
            "/hold": self._hold,
            "/stream": self._stream,
            "/process": self._process,
        }.get(url.path, self._echo)
        self.body = self._read_body()
        self.query = parse_qs(url.query)
        action()

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _health(self) -> None:
        self._answer(b"")

    def _busy(self) -> None:
        """Compute without ever releasing the interpreter's lock."""
        sys.setswitchinterval(3600)
        end = time.monotonic() + float(self.query["seconds"][0])
        while time.monotonic() < end:
            pass
        sys.setswitchinterval(0.005)
        self._answer(str(os.getpid()).encode())

    def _flood(self) -> None:
        """Write as fast as possible for as long as this process lives."""
        threading.Thread(target=self._write_for_ever, daemon=True).start()
        self._answer(b"")

    def _write_for_ever(self) -> None:
        while True:
            os.write(1, self.body * 1000)

    def _ready(self) -> None:
        path = os.environ.get("ECHO_READY_FILE")
        self._answer(b"", 200 if path is None or Path(path).exists() else 503)

    def _echo(self) -> None:
        print(f"echo {len(self.body)}", flush=True)
        self._answer(self.body)

    def _process(self) -> None:
        """Answer with a description of this process and this request."""
        about = {
            "pid": os.getpid(),
            "environment": dict(os.environ),
            "method": self.command,
            "path": self.path,
            "headers": list(self.headers.items()),
        }
        self._answer(json.dumps(about).encode(), content_type="application/json")

    def _crash(self) -> None:
        print("crashing", flush=True)
        os._exit(3)

    def _half(self) -> None:
        """Send half of the answer, then exit."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 500)
        self.wfile.flush()
        os._exit(3)

    def _hold(self) -> None:
        """Answer when the pipe named in the query has been opened for writing and closed."""
        Path(self.query["pipe"][0]).read_bytes()
        self._answer(str(os.getpid()).encode())

    def _stream(self) -> None:
        """Answer in two chunks, the second one when /hold would answer."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\nfirst\r\n")
        Path(self.query["pipe"][0]).read_bytes()
        self.wfile.write(b"6\r\nsecond\r\n0\r\n\r\n")

    def _answer(self, body: bytes, status: int = 200, content_type: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "a=1")
        self.send_header("Set-Cookie", "b=2")
        self.send_header("Connection", "keep-alive, X-Private")
        self.send_header("X-Private", "of this connection")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)


class EchoServer(ThreadingHTTPServer):
    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.getsockname(), EchoHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener


def exit_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if os.environ.get("ECHO_CRASH"):
        print("there is no block here")
        return 1
    if os.environ.get("ECHO_STUBBORN"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=exit_with_stdin, daemon=True).start()
    server = EchoServer(socket.socket(fileno=int(os.environ["FAASMOE_LISTEN_FD"])))
    if banner := os.environ.get("ECHO_BANNER"):
        print(banner)
    print("serving", flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
