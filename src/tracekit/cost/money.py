"""US dollars to read. JSON, CSV and the ledger have them exact."""

from __future__ import annotations

from decimal import Decimal


def dollars(amount: Decimal) -> str:
    """Rounded to the cent from a dollar up, below it to what matters: `$4.98`, `$0.50`, `$0.0030`, `$0.000012`."""
    if amount == 0:
        return "$0"
    of = abs(amount)
    # Two digits that matter, and the hundredth of a cent at least where there is more than whole cents.
    places = 2 if of >= 1 or of == round(of, 2) else max(4, 1 - of.adjusted())
    return f"{'-' if amount < 0 else ''}${of:,.{places}f}"


def in_dollars(amount: Decimal, unpriced: int) -> str:
    """A sum, marked where it is not all: of nothing but unpriced calls there is none."""
    if unpriced and not amount:
        return f"{unpriced} unpriced"
    return f"{dollars(amount)} + {unpriced} unpriced" if unpriced else dollars(amount)
