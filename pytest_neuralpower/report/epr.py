"""Energy-precision ratio: rank models by what their accuracy costs (NeuralPower, section 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.errors import BudgetError, NeuralPowerError
from pytest_neuralpower.files import read_text, read_yaml
from pytest_neuralpower.units import is_finite

if TYPE_CHECKING:
    from pytest_neuralpower.platform.protocol import Platform


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model: its ``error`` (a share, above 0 and at most 1) and predicted energy per sample."""

    name: str
    error: float
    energy_mj: float


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate with its ratio; ``efficient`` when Pareto-optimal in error and energy."""

    candidate: Candidate
    ratio: float
    efficient: bool


def read_candidates(path: Path, platform: Platform) -> tuple[Candidate, ...]:
    """Predict every model that a YAML file lists with its error.

    Raises
    ------
    BudgetError
        The file cannot be read, or an entry lacks a field; one line names the entry.
    """
    text = read_text(path, file=str(path), error=BudgetError)
    entries = read_yaml(text, file=str(path), error=BudgetError)
    if (
        not entries
        or not isinstance(entries, list)
        or not all(isinstance(each, dict) for each in entries)
    ):
        raise BudgetError(f"{path}: write a list of entries with {', '.join(_FIELDS)}")
    return tuple(
        _candidate(entry, f"{path}, entry {number}", platform)
        for number, entry in enumerate(entries, 1)
    )


_FIELDS = ("name", "model", "inputs", "error")


def _candidate(entry: Mapping[str, Any], where: str, platform: Platform) -> Candidate:
    from pytest_neuralpower.model_source import load_call  # noqa: PLC0415 - imports torch
    from pytest_neuralpower.platform.catalog import predict_call  # noqa: PLC0415

    unknown = [key for key in entry if key not in (*_FIELDS, "arguments")]
    missing = [field for field in _FIELDS if field not in entry]
    if unknown or missing:
        problem = f"unknown field {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
        raise BudgetError(f"{where}: {problem}; fields are {', '.join(_FIELDS)}, arguments")
    error = entry["error"]
    if isinstance(error, bool) or not isinstance(error, int | float):
        raise BudgetError(
            f"{where}: error {error!r} must be a share above 0 and at most 1, such as 0.24"
        )
    try:
        error = float(error) if is_finite(error) else math.inf
        energy_precision_ratio(error, 1.0)
        model, args, kwargs = load_call(entry)
        prediction = predict_call(model, args, kwargs, platform=platform)
    except (NeuralPowerError, TypeError, ValueError) as problem:
        raise BudgetError(f"{where}: {problem}") from None
    if prediction.energy_mj is None:
        raise BudgetError(f"platform {platform.name!r} has no power: it cannot rank by energy")
    if not prediction.batch:
        raise BudgetError(f"{where}: its inputs do not tell how many samples one call has")
    return Candidate(str(entry["name"]), error, prediction.energy_mj / prediction.batch)


def energy_precision_ratio(error: float, energy_mj: float, *, alpha: float = 1.0) -> float:
    """``M = error ** alpha * energy per sample``: lower is better.

    Parameters
    ----------
    error
        Share of wrong answers, above 0 and at most 1.
    energy_mj
        Gross device energy of one sample, mJ.
    alpha
        Weight of the error, 0 or more; 0 ranks by energy alone.

    Raises
    ------
    BudgetError
        A value is outside its range.
    """
    if not 0 < error <= 1:
        raise BudgetError(f"error {error!r} must be a share above 0 and at most 1, such as 0.24")
    if not (math.isfinite(energy_mj) and energy_mj > 0):
        raise BudgetError(f"energy {energy_mj!r} mJ must be finite and above 0")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise BudgetError(f"alpha {alpha!r} must be 0 or more")
    return float(error**alpha * energy_mj)


def rank(candidates: Iterable[Candidate], *, alpha: float = 1.0) -> tuple[Ranked, ...]:
    """Candidates by their ratio, best first; equal ratios keep their order."""
    found = tuple(candidates)
    ranked = [
        Ranked(
            each,
            energy_precision_ratio(each.error, each.energy_mj, alpha=alpha),
            not any(_dominates(other, each) for other in found),
        )
        for each in found
    ]
    return tuple(sorted(ranked, key=lambda item: item.ratio))


def pareto_front(ranked: Sequence[Ranked]) -> tuple[Candidate, ...]:
    """The efficient candidates by energy: each costs more than the last, and has less error."""
    front = [item.candidate for item in ranked if item.efficient]
    return tuple(sorted(front, key=lambda each: (each.energy_mj, each.error)))


def _dominates(one: Candidate, other: Candidate) -> bool:
    no_worse = one.error <= other.error and one.energy_mj <= other.energy_mj
    return no_worse and (one.error < other.error or one.energy_mj < other.energy_mj)
