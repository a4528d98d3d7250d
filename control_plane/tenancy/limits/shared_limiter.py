"""Admission of requests for several control planes, which share accounts in a database."""

import asyncio
import json
from collections.abc import Callable
from typing import TypeVar

from control_plane.tenancy.limits.admission import Account, Admission, Quota, Ticket
from control_plane.tenancy.limits.places import Places
from control_plane.tenancy.storage.postgres import PostgresDatabase
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.storage.store_thread import StoreThread
from control_plane.tenancy.tenants import Tenant

Result = TypeVar("Result")
Decide = Callable[[TenantStore, Admission, float], Result]


class SharedLimiter:
    """A limiter that keeps tenants' accounts in the database, so that all control planes count together.

    Times are those of the database's clock. Requests that a crashed control plane had admitted count for
    `lease_seconds`. Only the places of `max_queued` are per process. Methods also raise
    `DatabaseUnavailable`.
    """

    def __init__(
        self, thread: StoreThread, max_queued: int, max_queued_per_tenant: int, lease_seconds: float
    ) -> None:
        self._thread = thread
        self._places = Places(max_queued)
        self._max_queued_per_tenant = max_queued_per_tenant
        self._lease_seconds = lease_seconds
        self._releases: set[asyncio.Task[None]] = set()

    async def admit(self, tenant: Tenant, sequences: int, tokens: int) -> Ticket:
        """See `Admission.admit`."""

        def decide(store: TenantStore, admission: Admission, now: float) -> Ticket:
            spent = store.spent(tenant.name, now) if tenant.limits.has_budgets else None
            return admission.admit(tenant, sequences, tokens, now, now + self._lease_seconds, spent)

        # Take them before the wait for the database, during which other requests may arrive.
        self._places.take(tenant, sequences)
        task = asyncio.create_task(self._with_account(tenant.name, decide))
        try:
            ticket = await asyncio.shield(task)
        except asyncio.CancelledError:
            # The client has disconnected: release the request if the database admits it all the same.
            self._places.give_back(tenant.name, sequences)
            task.add_done_callback(self._release_admitted)
            raise
        except BaseException:
            self._places.give_back(tenant.name, sequences)
            raise
        return ticket

    async def release(self, ticket: Ticket, used_tokens: int) -> None:
        """See `Admission.release`."""
        self._places.give_back(ticket.tenant, ticket.sequences)
        await self._release(ticket, used_tokens)

    async def quota(self, tenant: Tenant) -> Quota:
        """See `Admission.quota`."""
        return await self._with_account(tenant.name, lambda _, admission, now: admission.quota(tenant, now))

    async def _release(self, ticket: Ticket, used_tokens: int) -> None:
        await self._with_account(
            ticket.tenant, lambda _, admission, now: admission.release(ticket, used_tokens, now)
        )

    def _release_admitted(self, task: asyncio.Task[Ticket]) -> None:
        if not task.cancelled() and task.exception() is None:
            releasing = asyncio.create_task(self._release(task.result(), 0))
            # The event loop holds only weak references to tasks.
            self._releases.add(releasing)
            releasing.add_done_callback(self._releases.discard)

    async def _with_account(self, tenant: str, decide: Decide[Result]) -> Result:
        return await self._thread.run(lambda store: self._decide(store, tenant, decide))

    def _decide(self, store: TenantStore, tenant: str, decide: Decide[Result]) -> Result:
        """In the store's thread: apply `decide` to the tenant's locked account, and store the account."""
        database = store.database
        assert isinstance(database, PostgresDatabase)
        with database.locked(tenant):
            ((now,),) = database.select("SELECT extract(epoch FROM clock_timestamp())::float8")
            rows = database.select("SELECT state FROM accounts WHERE tenant = ?", (tenant,))
            accounts = {tenant: Account.from_json(json.loads(rows[0][0]), now)} if rows else {}
            admission = Admission(self._max_queued_per_tenant, accounts)
            decided = decide(store, admission, now)
            account = admission.accounts.get(tenant)
            state = None if account is None else json.dumps(account.to_json())
            if rows and state == rows[0][0]:
                return decided
            if state is not None:
                database.change(
                    """INSERT INTO accounts VALUES (?, ?)
                    ON CONFLICT (tenant) DO UPDATE SET state = excluded.state""",
                    (tenant, state),
                )
            elif rows:
                database.change("DELETE FROM accounts WHERE tenant = ?", (tenant,))
            return decided
