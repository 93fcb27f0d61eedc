"""Cost: what model calls spent and at which price, from the ledger in PostgreSQL, and what may be spent."""

from tracekit.cost.ledger import Booked, Ledger, Report
from tracekit.cost.limits import OverBudget
from tracekit.cost.prices import PriceBook, Priced
from tracekit.cost.spans import CallSpan
from tracekit.cost.usage import Usage, UsageError

__all__ = [
    "Booked",
    "CallSpan",
    "Ledger",
    "OverBudget",
    "PriceBook",
    "Priced",
    "Report",
    "Usage",
    "UsageError",
]
