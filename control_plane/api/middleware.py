"""Gives every request an id and a clock, and turns errors into JSON in the form of the request's API."""

import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from difflib import get_close_matches
from typing import Any

from aiohttp import web

from control_plane.api.active_request import RequestTiming
from control_plane.api.anthropic import errors as anthropic
from control_plane.api.openai.errors import INTERNAL, KINDS, domain_error_body, with_reference
from control_plane.api.openai.headers import error_headers
from control_plane.errors import BadRequest, FaaSMoEError
from control_plane.http import error_body, error_type
from control_plane.tenancy.tenants import Tenant
from control_plane.validation import MAX_QUOTED

logger = logging.getLogger(__name__)

REQUEST_ID = web.RequestKey("request_id", str)
TIMING = web.RequestKey("timing", RequestTiming)
TENANT = web.RequestKey("tenant", Tenant)
"""The tenant that sends the request, once it is known."""

_GOOD_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def request_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id, which the client may choose, and turn errors into responses."""
    asked = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = asked if _GOOD_ID.fullmatch(asked) else secrets.token_hex(12)
    request[TIMING] = RequestTiming()
    try:
        # Uploads of files have their own bounds, and no other route reads such a body.
        is_upload = request.content_type == "multipart/form-data"
        if (request.content_length or 0) > request.client_max_size and not is_upload:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size)
        response = await handler(request)
    except FaaSMoEError as error:
        response = refusal(request, error)
    except web.RequestPayloadError:
        response = refusal(request, BadRequest("the body is not encoded as its headers say"))
    except web.HTTPException as error:
        headers = {name: value for name, value in error.headers.items() if name in ("Allow", "Retry-After")}
        body = error_body(_reason(request, error), error_type(error.status))
        response = _error_response(request, body, error.status, headers)
    except ConnectionResetError:
        # The client has disconnected: there is nobody to answer.
        raise
    except Exception:
        # A fault in one request must not end the server.
        logger.exception("a request failed", extra=_logged(request))
        text = with_reference(INTERNAL.text, request[REQUEST_ID])
        response = _error_response(request, error_body(text, INTERNAL.type), INTERNAL.status, {})
    return response


def _reason(request: web.Request, error: web.HTTPException) -> str:
    """The message for an error of aiohttp's. It contains nothing of the request."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"this path takes {', '.join(sorted(error.allowed_methods))}"
    if isinstance(error, web.HTTPNotFound):
        there_is = routes(request.app)
        # A long path would take long to compare.
        near = get_close_matches(request.path[:MAX_QUOTED], [path for _, path in there_is], n=1)
        nearest = [
            f"the nearest is {method} {path}"
            for method, path in there_is
            if method == request.method and path in near
        ]
        return "; ".join(
            ["there is no such path", *nearest, f"there are {', '.join(map(' '.join, there_is))}"]
        )
    return error.reason


def routes(app: web.Application) -> list[tuple[str, str]]:
    """The methods and paths of an application, without the variants that end in a slash."""
    found = [
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource and route.method != "HEAD"
    ]
    return [(method, path) for method, path in found if path == "/" or not path.endswith("/")]


def refusal(request: web.Request, error: FaaSMoEError) -> web.Response:
    """Log a domain error, and build its response."""
    log_error(request, error)
    body = domain_error_body(error, request[REQUEST_ID])
    if request.path.startswith(anthropic.PATH):
        body["error"]["message"] = anthropic.error_message(error, request[REQUEST_ID])
    return _error_response(request, body, KINDS[type(error)].status, error_headers(error))


def _error_response(
    request: web.Request, body: dict[str, Any], status: int, headers: Mapping[str, str]
) -> web.Response:
    """The response for an error's body in OpenAI's form. It is converted for paths of Anthropic's API."""
    if request.path.startswith(anthropic.PATH):
        body = anthropic.error_body(status, body["error"]["message"], request[REQUEST_ID])
        status = anthropic.error_status(status)
    return web.json_response(body, status=status, headers=headers)


def log_error(request: web.Request, error: FaaSMoEError) -> None:
    """Log a domain error. The log has its full text if clients are not told."""
    kind = KINDS[type(error)]
    outcome = {"status": kind.status, "code": kind.code, "param": getattr(error, "param", None)}
    if kind.status >= 500:
        # An error of the server's does not quote the client.
        logger.warning("not served: %s", error, extra=_logged(request) | outcome)
    else:
        # The message may quote the client's text, which does not belong in a log.
        logger.info("not served", extra=_logged(request) | outcome)


def _logged(request: web.Request) -> dict[str, str | None]:
    """The fields that identify a request in the log."""
    tenant = request.get(TENANT)
    return {
        "request_id": request[REQUEST_ID],
        "tenant": tenant.name if tenant else None,
        "path": request.path[:MAX_QUOTED],
    }
