"""Who is asking: the tenant whose key a request carries."""

from dataclasses import dataclass

from aiohttp import web

from control_plane.errors import BadRequest, ConfigError, InvalidApiKey, UnknownTenant
from control_plane.tenancy.storage.store_thread import StoreThread
from control_plane.tenancy.tenants import Limits, Tenant, check_name

ANONYMOUS = "default"
"""Who asks an open server without a name."""


@dataclass(frozen=True)
class Authentication:
    """Reads keys. An open server serves requests without one, too, as the tenant that they name."""

    store: StoreThread
    open: bool

    async def tenant(self, request: web.Request) -> Tenant | None:
        """The key's tenant; None for a request without a key where none is needed. Raises `InvalidApiKey`."""
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and key.strip():
            try:
                return await self.store.run(lambda store: store.authenticate(key.strip()))
            except InvalidApiKey:
                # Clients that have to send some key send any to a server that needs none.
                if not self.open:
                    raise
        elif not self.open:
            raise InvalidApiKey("no API key: send it as `Authorization: Bearer KEY`")
        return None

    async def named(self, name: str | None) -> Tenant:
        """Who a request without a key is served as. Raises `InvalidApiKey` for a tenant that has a key."""
        name = name or ANONYMOUS
        try:
            check_name(name)
        except ConfigError as error:
            raise BadRequest(f"user: without a key it names the tenant: {error}", "user") from error
        try:
            await self.store.run(lambda store: store.get(name))
        except UnknownTenant:
            return Tenant(name, Limits())
        raise InvalidApiKey(f"the tenant {name} has a key: send it as `Authorization: Bearer KEY`")

    async def is_operator(self, request: web.Request) -> bool:
        """Whether the request may see what concerns all tenants."""
        try:
            tenant = await self.tenant(request)
        except InvalidApiKey:
            return False
        return self.open if tenant is None else tenant.operator
