"""The database's schema, as a list of migrations. A migration is never changed after a release.

Statements are written for SQLite; `postgres` translates them.
"""

APPLICATION_ID = 0x6D6F6531
"""Marks a SQLite file as FaaSMoE's, in its header ("moe1")."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE tenants (
            name TEXT PRIMARY KEY,
            key_hash BLOB UNIQUE,
            weight REAL NOT NULL,
            rpm INTEGER,
            tpm INTEGER,
            max_concurrency INTEGER,
            max_context INTEGER,
            max_output INTEGER,
            operator INTEGER NOT NULL,
            created REAL NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        # No foreign key to tenants: usage outlives its tenant. Integers, because their sums are exact.
        """
        CREATE TABLE usage (
            tenant TEXT NOT NULL,
            minute INTEGER NOT NULL,
            requests INTEGER NOT NULL,
            prompt_tokens INTEGER NOT NULL,
            generated_tokens INTEGER NOT NULL,
            expert_microinvocations INTEGER NOT NULL,
            expert_nanoseconds INTEGER NOT NULL,
            PRIMARY KEY (tenant, minute)
        ) STRICT, WITHOUT ROWID
        """,
    ),
    (
        # State of tenants' limits, as JSON, for several control planes that enforce them together.
        """
        CREATE TABLE accounts (
            tenant TEXT PRIMARY KEY,
            state TEXT NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
    ),
    (
        # Servers that have used this database, each with the number of its last entry of bookings: an entry
        # that is written again, after a failure or a crash, is booked once. Also tells a server whether a
        # database that takes the place of its own has its declared tenants.
        """
        CREATE TABLE writers (
            id TEXT PRIMARY KEY,
            last INTEGER NOT NULL,
            at INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
    ),
    (
        # Several keys for each tenant. SQLite cannot drop a unique column, so `tenants` is made anew.
        """
        CREATE TABLE keys (
            hash BLOB PRIMARY KEY,
            tenant TEXT NOT NULL,
            name TEXT NOT NULL,
            expires REAL,
            created REAL NOT NULL,
            UNIQUE (tenant, name)
        ) STRICT, WITHOUT ROWID
        """,
        """
        INSERT INTO keys SELECT key_hash, name, 'main', NULL, created FROM tenants
        WHERE key_hash IS NOT NULL
        """,
        """
        CREATE TABLE limited_tenants (
            name TEXT PRIMARY KEY,
            weight REAL NOT NULL,
            rpm INTEGER,
            tpm INTEGER,
            max_concurrency INTEGER,
            max_context INTEGER,
            max_output INTEGER,
            tokens_per_day INTEGER,
            tokens_per_month INTEGER,
            operator INTEGER NOT NULL,
            created REAL NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        """
        INSERT INTO limited_tenants SELECT name, weight, rpm, tpm, max_concurrency, max_context, max_output,
        NULL, NULL, operator, created FROM tenants
        """,
        "DROP TABLE tenants",
        "ALTER TABLE limited_tenants RENAME TO tenants",
        # Sums of `usage` by day (UTC): a budget is read at each request, and a month has 44,640 minutes.
        """
        CREATE TABLE daily_tokens (
            tenant TEXT NOT NULL,
            day INTEGER NOT NULL,
            tokens INTEGER NOT NULL,
            PRIMARY KEY (tenant, day)
        ) STRICT, WITHOUT ROWID
        """,
        """
        INSERT INTO daily_tokens SELECT tenant, minute / 1440, sum(prompt_tokens + generated_tokens)
        FROM usage GROUP BY tenant, minute / 1440
        """,
    ),
)
"""Each entry runs in one transaction. The database's version is the number of entries it has applied."""

_TYPES = {"INTEGER": "BIGINT", "REAL": "DOUBLE PRECISION", "BLOB": "BYTEA", ") STRICT, WITHOUT ROWID": ")"}


def postgres(statement: str) -> str:
    """Translate a statement of `MIGRATIONS` for PostgreSQL."""
    for theirs, ours in _TYPES.items():
        statement = statement.replace(theirs, ours)
    return statement
