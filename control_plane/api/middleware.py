"""What every request has: an id, a clock, and errors as OpenAI's JSON."""

import logging
import re
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import web

from control_plane.api.openai.errors import KINDS, error_body, error_response
from control_plane.api.openai.fields import MAX_QUOTED
from control_plane.api.timing import Timing
from control_plane.errors import BadRequest, FaaSMoEError
from control_plane.tenancy.tenants import Tenant

logger = logging.getLogger(__name__)

REQUEST_ID = web.RequestKey("request_id", str)
TIMING = web.RequestKey("timing", Timing)
TENANT = web.RequestKey("tenant", Tenant)
"""Who asks, as soon as that is known."""

_GOOD_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def request_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id, which a client may bring along, and turn errors into answers."""
    asked = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = asked if _GOOD_ID.fullmatch(asked) else secrets.token_hex(12)
    request[TIMING] = Timing()
    try:
        if (request.content_length or 0) > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size)
        response = await handler(request)
    except FaaSMoEError as error:
        response = _refusal(request, error)
    except web.RequestPayloadError:
        response = _refusal(request, BadRequest("the body is not encoded as its headers say"))
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
        logger.exception("a request failed", extra=_logged(request))
        response = web.json_response(error_body("internal error", "server_error", None, None), status=500)
    return response


def _refusal(request: web.Request, error: FaaSMoEError) -> web.Response:
    """The answer. A client's own error may quote it, and is not logged."""
    response, kind = error_response(error), KINDS[type(error)]
    told = {"status": kind.status, "code": kind.code, "param": getattr(error, "param", None)}
    if kind.status >= 500:
        # What the server itself has to say, with nothing of the client's in it.
        logger.warning("not served: %s", error, extra=_logged(request) | told)
    else:
        logger.info("not served", extra=_logged(request) | told)
    return response


def _logged(request: web.Request) -> dict[str, str | None]:
    """What every line about a request has."""
    tenant = request.get(TENANT)
    return {
        "request_id": request[REQUEST_ID],
        "tenant": tenant.name if tenant else None,
        "path": request.path[:MAX_QUOTED],
    }
