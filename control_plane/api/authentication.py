"""Finds the tenant that sends a request, by its API key."""

import ipaddress
from dataclasses import dataclass

from aiohttp import web
from yarl import URL

from control_plane.api.cors import Origins
from control_plane.api.middleware import TENANT
from control_plane.errors import (
    BadRequest,
    ConfigError,
    DatabaseUnavailable,
    ExpiredApiKey,
    InvalidApiKey,
    UnknownTenant,
)
from control_plane.tenancy.storage.store_thread import StoreThread
from control_plane.tenancy.tenants import Limits, Tenant, check_name

ANONYMOUS = "default"
"""The tenant of requests to an open server that name none."""
_SEND_IT = "send it as `Authorization: Bearer KEY` or `x-api-key: KEY`"


@dataclass(frozen=True)
class Authentication:
    """Authenticates requests. An open server also takes requests without a key, as the tenant they name."""

    store: StoreThread
    open: bool
    """Whether requests without a key are served."""
    origins: Origins

    async def identify(self, request: web.Request) -> str:
        """Store the tenant of the key in the request; returns its name, or "" without a key.

        Raises `InvalidApiKey`.
        """
        tenant = await self._tenant(request)
        if tenant is None:
            return ""
        request[TENANT] = tenant
        return tenant.name

    async def _tenant(self, request: web.Request) -> Tenant | None:
        """The tenant of the request's key; None when it has none and needs none. Raises `InvalidApiKey`."""
        key = _key(request)
        if key is not None:
            try:
                return await self.store.run(lambda store: store.authenticate(key))
            except ExpiredApiKey:
                # Even an open server must not serve this as the request of another tenant.
                raise
            except InvalidApiKey:
                # Some clients cannot go without a key, and send an arbitrary one to an open server.
                if not self.open:
                    raise
        elif not self.open:
            raise InvalidApiKey(f"no API key: {_SEND_IT}")
        if problem := self._foreign_page(request):
            raise InvalidApiKey(f"without an API key, this server takes {problem}")
        return None

    def _foreign_page(self, request: web.Request) -> str:
        """The requests that an open server accepts, if a foreign page may have sent this one; "" if not."""
        if not _is_local(request.host):
            return "requests to its address or localhost only"
        origin = request.headers.get("Origin")
        if origin is not None and not self.origins.allows(origin):
            return "no requests of this page: see --cors-origin"
        return ""

    async def named(self, name: str | None) -> Tenant:
        """The tenant of a request without a key, named by its `user` field.

        Raises `InvalidApiKey` for a tenant that has a key, and `BadRequest` for a name that is not allowed.
        """
        name = name or ANONYMOUS
        try:
            check_name(name)
        except ConfigError as error:
            raise BadRequest(f"user: without a key it names the tenant: {error}", "user") from error
        try:
            await self.store.run(lambda store: store.get(name))
        except UnknownTenant:
            return Tenant(name, Limits())
        raise InvalidApiKey(f"the tenant {name} has a key: {_SEND_IT}")

    async def served(self, name: str) -> Tenant:
        """The current state of the tenant that an earlier request belongs to. Raises `UnknownTenant`."""
        try:
            return await self.store.run(lambda store: store.get(name))
        except UnknownTenant:
            if not self.open:
                raise
            return Tenant(name, Limits())

    async def is_operator(self, request: web.Request) -> bool:
        """Whether the request has an operator's key, which gives the right to see the data of all tenants.

        An open server's clients are tenants like others: without such a key, they see only what is theirs.
        """
        try:
            tenant = await self._tenant(request)
        except (InvalidApiKey, DatabaseUnavailable):
            return False
        return tenant is not None and tenant.operator

    async def may_see_addresses(self, request: web.Request) -> bool:
        """Whether the request may see gateways' addresses: from operators, or where no key is needed."""
        return (self.open and not self._foreign_page(request)) or await self.is_operator(request)


def _key(request: web.Request) -> str | None:
    """The key in a request's headers, if there is one. Raises `InvalidApiKey` if they differ."""
    keys = {key.strip() for key in request.headers.getall("x-api-key", ())}
    for authorization in request.headers.getall("Authorization", ()):
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() == "bearer":
            keys.add(key.strip())
    keys.discard("")
    if len(keys) > 1:
        raise InvalidApiKey("the headers Authorization and x-api-key have different keys: send one")
    return keys.pop() if keys else None


def _is_local(host: str) -> bool:
    """Whether a Host header is an address or this machine's name, which no page of another site can have.

    A browser sends the name of the page's own site, even when that site makes its name point here.
    """
    try:
        name = URL(f"http://{host}").host or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
