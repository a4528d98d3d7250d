"""How the database came to be what it is: each step once, in this order, never changed after a release.

Statements are SQLite's; `postgres` makes PostgreSQL's of them.
"""

APPLICATION_ID = 0x6D6F6531
"""Marks a SQLite file as ours, in its header."""

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
        # Not a child of tenants: what a tenant has used outlives it. Integers add up exactly.
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
        # What is remembered of tenants' limits where several control planes hold them together.
        """
        CREATE TABLE accounts (
            tenant TEXT PRIMARY KEY,
            state TEXT NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
    ),
)
"""Statements that run in one transaction; the database's version is how many of these it has seen."""

_TYPES = {"INTEGER": "BIGINT", "REAL": "DOUBLE PRECISION", "BLOB": "BYTEA", ") STRICT, WITHOUT ROWID": ")"}


def postgres(statement: str) -> str:
    """The same for PostgreSQL."""
    for theirs, ours in _TYPES.items():
        statement = statement.replace(theirs, ours)
    return statement
