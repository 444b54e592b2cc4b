"""Properties of a test in JUnit's XML: what CI servers show beside its outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["properties"]

_FACTS: Final = ("platform", "platform_sha256", "model", "batch", "outcome")
_VALUES: Final = ("energy_mj", "runtime_ms", "power_w")
_BUDGETS: Final = {
    "energy": "energy_budget_mj",
    "runtime": "runtime_budget_ms",
    "power": "power_budget_w",
}


def properties(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Pairs for ``item.user_properties``, which xdist carries to the process that writes the XML.

    Parameters
    ----------
    records
        Of one test; with more than one, names are numbered: ``neuralpower.2.energy_mj``.

    Returns
    -------
    list of tuple
        Scalars only; ``baseline_energy_mj`` and ``baseline_runtime_ms`` are those of the baseline,
        predicted again with the platform of now. What is not known is left out.
    """
    pairs = []
    for number, record in enumerate(records, 1):
        prefix = "neuralpower" if len(records) == 1 else f"neuralpower.{number}"
        found = {name: record[name] for name in (*_FACTS, *_VALUES)}
        found |= {
            f"{_BUDGETS[budget['quantity']]}_per_{budget['per']}": budget["limit"]
            for budget in record["budgets"]
        }
        comparison = record.get("comparison") or {}
        found |= {
            f"baseline_{name}": comparison[quantity]["base"]
            for quantity, name in (("energy", "energy_mj"), ("runtime", "runtime_ms"))
            if comparison.get(quantity)
        }
        pairs += [(f"{prefix}.{name}", value) for name, value in found.items() if value is not None]
    return pairs
