"""The budget that a model is pruned to, as the user writes it."""

from __future__ import annotations

import math
import re

from pytest_neuralpower.budget import Budget
from pytest_neuralpower.errors import BudgetError
from pytest_neuralpower.units import SYMBOLS, UNITS

__all__ = ["as_budget"]

_TEXT = re.compile(r"\s*([0-9.eE+-]+)\s*([a-zµ]+)\s*", re.IGNORECASE)


def as_budget(budget: Budget | str) -> Budget:
    """A limit on the energy or runtime of one call.

    Parameters
    ----------
    budget
        A :class:`~pytest_neuralpower.budget.Budget`, or text such as ``"12 mJ"`` or ``"3.5 ms"``.

    Raises
    ------
    BudgetError
        It is no such limit.
    """
    if isinstance(budget, str):
        return _parse(budget)
    if not isinstance(budget, Budget):
        raise BudgetError(f"budget={budget!r}: write '12 mJ' or '3.5 ms', or give a Budget")
    if budget.quantity == "power":
        raise BudgetError("a power budget cannot be pruned to: give energy or runtime")
    return budget


def _parse(text: str) -> Budget:
    found = _TEXT.fullmatch(text)
    unit = found[2].lower().replace("µ", "u") if found else ""
    for quantity in ("energy", "runtime"):
        if found and unit in UNITS[quantity]:
            try:
                limit = float(found[1]) * UNITS[quantity][unit]
            except ValueError:
                break
            if math.isfinite(limit) and limit > 0:
                return Budget(quantity, limit, unit)
    units = ", ".join(SYMBOLS[unit] for each in ("energy", "runtime") for unit in UNITS[each])
    raise BudgetError(f"budget {text!r}: write a number above 0 and one of {units}, as '12 mJ'")
