"""A bare aiohttp server, the baseline of invoke.py: `python -m bench.support.echo_server`.

It is its own module because invoke.py starts many of them, and they must not import torch.
"""

from aiohttp import web

from control_plane.http import serving
from control_plane.signals import serve_until_signal
from functions.contract.process import MAX_BODY_BYTES


async def _echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


def main() -> None:
    """Answer each call with the body of the request, on a free port of the loopback interface."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_post("/", _echo)
    serve_until_signal("serving", serving(app, "127.0.0.1", 0))


if __name__ == "__main__":
    main()
