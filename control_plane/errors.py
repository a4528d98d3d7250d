"""Every error that FaaSMoE raises on purpose.

    FaaSMoEError
    |-- ConfigError                 a setting, a file or an argument is wrong
    |-- PartitionError              a checkpoint or a partition cannot be read or written
    |   `-- UnsupportedModel        a model family that cannot be split
    |-- HubError                    a hub of models refuses, or does not have a model
    |   `-- HubUnreachable          it does not answer
    |-- GatewayError                a FaaS gateway or one of its functions
    |   |-- FunctionNotFound        the gateway has no such function
    |   |-- FunctionUnavailable     a function is unreachable after all retries
    |   |-- InvocationTimeout       a function did not answer before the deadline
    |   `-- ProtocolError           an answer breaks the contract
    |-- EngineError                 the engine could not run a request
    |   |-- ContextLengthExceeded   prompt and output do not fit the context
    |   |-- OutOfCache              the KV cache cannot hold the sequence
    |   `-- ShuttingDown            the server is shutting down
    |-- TenancyError                a tenant is unknown, or may not do that
    |   |-- UnknownTenant           no tenant of that name
    |   |-- InvalidApiKey           no key, or none that belongs to a tenant
    |   |   `-- ExpiredApiKey       a key that was valid until some time
    |   `-- RetryLater              refused now, perhaps granted later
    |       |-- QuotaExceeded       the tenant has reached a limit
    |       |   `-- BudgetExceeded  the tenant has used its tokens of the day or the month
    |       |-- QueueFull           the tenant has too many sequences in the queue
    |       |-- Overloaded          all tenants together have too many
    |       `-- DatabaseUnavailable   tenants cannot be looked up, or usage cannot be kept
    |-- TokenizerError              the model's tokenizer fails on a text or on tokens
    |-- BadRequest                  an API request that breaks the rules
    |   |-- UnknownModel            a request names a model that is not served
    |   `-- UnknownObject           a request names a file or a batch that the tenant does not have
    |-- StorageFull                 there is no room for a file or an answer
    `-- RequestTimeout              a request exceeds the time limit

The command line prints them as one line; the HTTP API maps them to a status in one table.
"""


class FaaSMoEError(Exception):
    """Base of all errors that a user can cause or needs to see."""


class ConfigError(FaaSMoEError):
    """A setting, a file or an argument is wrong."""


class PartitionError(FaaSMoEError):
    """A checkpoint or a partition folder cannot be read or written."""


class UnsupportedModel(PartitionError):
    """The checkpoint's model family, or one of its options, cannot be split."""


class HubError(FaaSMoEError):
    """A hub of models refuses a model, or does not have it."""


class HubUnreachable(HubError):
    """A hub of models does not answer, or not now."""


class GatewayError(FaaSMoEError):
    """A gateway, or a function behind it, refused or failed."""

    functions: frozenset[str] = frozenset()
    """The functions that failed, if the error concerns an invocation; none if any may have failed."""


class FunctionNotFound(GatewayError):
    """The gateway has no function of that name."""


class FunctionUnavailable(GatewayError):
    """A function could not be reached after all retries."""


class InvocationTimeout(GatewayError):
    """A function did not answer before its deadline."""


class ProtocolError(GatewayError):
    """An answer broke the contract: garbage, a wrong shape, or another model's weights."""


class EngineError(FaaSMoEError):
    """The engine could not run a request."""


class ContextLengthExceeded(EngineError):
    """Prompt and requested output exceed the context.

    If the prompt alone is too long, `param` is its field, and `tokens` says how long it is and may
    be: "29892 tokens > 20000".
    """

    def __init__(self, message: str, param: str | None = None, tokens: str = "") -> None:
        super().__init__(message)
        self.param = param
        self.tokens = tokens


class OutOfCache(EngineError):
    """The sequence does not fit into the KV cache, even alone."""


class ShuttingDown(EngineError):
    """The server is shutting down, and accepts no more requests."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class TenancyError(FaaSMoEError):
    """A tenant is unknown, or may not do what it asks for."""


class UnknownTenant(TenancyError):
    """There is no tenant of that name."""


class InvalidApiKey(TenancyError):
    """A request without a key, or with one that belongs to no tenant."""


class ExpiredApiKey(InvalidApiKey):
    """A tenant's key that has expired."""


class RetryLater(TenancyError):
    """Refused now, but perhaps granted after `retry_after` seconds; None when waiting does not help."""

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QuotaExceeded(RetryLater):
    """The tenant has reached one of its limits."""


class BudgetExceeded(QuotaExceeded):
    """The tenant has used its tokens of the day or the month."""


class QueueFull(RetryLater):
    """The tenant has too many sequences in the queue."""


class Overloaded(RetryLater):
    """All tenants together have too many sequences in the queue."""


class DatabaseUnavailable(RetryLater):
    """The database of tenants and usage cannot be used now. The log has the reason, clients do not get it."""


class TokenizerError(FaaSMoEError):
    """The model's tokenizer failed, on a text that others may do without."""


class BadRequest(FaaSMoEError):
    """An API request that breaks the rules; `param` names the field at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnknownModel(BadRequest):
    """A request names a model that is not served."""

    def __init__(self, asked: str, *served: str) -> None:
        names = ", ".join(map(repr, served))
        super().__init__(f"model: there is no model {asked[:80]!r}, only {names}", "model")


class UnknownObject(BadRequest):
    """A request names a file or a batch that the tenant does not have."""


class StorageFull(FaaSMoEError):
    """There is no room on the disk, or in what the server or the tenant may use of it."""


class RequestTimeout(FaaSMoEError):
    """A request exceeds the time limit."""
