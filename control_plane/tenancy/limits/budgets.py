"""Decides whether a request fits into the tokens of its tenant's day and month."""

from dataclasses import dataclass

from control_plane.errors import BudgetExceeded, QuotaExceeded
from control_plane.tenancy.limits.places import RETRY_SECONDS
from control_plane.tenancy.tenants import Limits
from control_plane.tenancy.usage import Spent


@dataclass(frozen=True)
class _Budget:
    period: str
    limit: int
    spent: int
    ends: float
    """Seconds until the budget is new again."""


def check_budgets(limits: Limits, spent: Spent, running: int, tokens: int) -> None:
    """Raise `BudgetExceeded` or `QuotaExceeded` for a request of `tokens` that a budget has no room for.

    `running` is the number of tokens that requests in progress may still use. What they do not use is
    free when they end.
    """
    budgets = _budgets(limits, spent)
    for budget in budgets:
        if tokens > budget.limit:
            raise BudgetExceeded(f"the request may take {tokens} tokens, and {_limit(budget)}", None)
    used_up = [budget for budget in budgets if budget.spent + tokens > budget.limit]
    if used_up:
        last = max(used_up, key=lambda budget: budget.ends)
        raise BudgetExceeded(
            f"{_limit(last)}, of which {last.spent} are used, and the request may take {tokens}", last.ends
        )
    for budget in budgets:
        if budget.spent + spent.ending + running + tokens > budget.limit:
            raise QuotaExceeded(
                f"{_limit(budget)}, and requests in progress may use what is left of it", RETRY_SECONDS
            )


def _budgets(limits: Limits, spent: Spent) -> list[_Budget]:
    budgets = []
    if limits.tokens_per_day is not None:
        budgets.append(_Budget("day", limits.tokens_per_day, spent.day, spent.day_ends))
    if limits.tokens_per_month is not None:
        budgets.append(_Budget("month", limits.tokens_per_month, spent.month, spent.month_ends))
    return budgets


def _limit(budget: _Budget) -> str:
    return f"the limit is {budget.limit} tokens per {budget.period} (UTC)"
