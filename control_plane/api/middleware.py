"""What every request has: an id, a clock, and errors as OpenAI's JSON."""

import logging
import re
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import web

from control_plane.api.error_body import error_body
from control_plane.api.errors import error_response
from control_plane.api.timing import Timing
from control_plane.errors import FaaSMoEError

logger = logging.getLogger(__name__)

REQUEST_ID = web.RequestKey("request_id", str)
TIMING = web.RequestKey("timing", Timing)

_GOOD_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def request_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id, which a client may bring along, and turn errors into answers."""
    asked = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = asked if _GOOD_ID.fullmatch(asked) else secrets.token_hex(12)
    request[TIMING] = Timing()
    try:
        response = await handler(request)
    except FaaSMoEError as error:
        response = error_response(error)
        extra = {"request_id": request[REQUEST_ID], "path": request.path, "status": response.status}
        logger.info("not served: %s", error, extra=extra)
    except web.HTTPException as error:
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        headers = {name: value for name, value in error.headers.items() if name == "Allow"}
        body = error_body(error.reason, kind, None, None)
        response = web.json_response(body, status=error.status, headers=headers)
    except ConnectionResetError:
        # The client has gone; there is nobody to answer.
        raise
    except Exception:
        # The edge of a request: the next one is served.
        logger.exception("%s %s failed", request.method, request.path)
        response = web.json_response(error_body("internal error", "server_error", None, None), status=500)
    return response
