"""A shipped platform turned into a user's own by a handful of calls that they timed.

A user's stack, clocks and cooling differ from those that a platform was measured with, in all kinds
of layers alike and in some more than in others. Calls say by which factors: their logarithms are
taken to be normal about 0, so that few calls move one factor and more tell kinds apart. A call may
also mislead; so nothing is taken over that does not predict calls that were left out better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from msgspec.structs import replace

from pytest_neuralpower.calibrate.fit.calls import TimedCall, check_units, read_calls
from pytest_neuralpower.calibrate.fit.recipe import Recipe, Source
from pytest_neuralpower.calibrate.fit.uncertainty import few_distance, with_total_error
from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.base import need_extra
from pytest_neuralpower.estimators.features import family

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.estimators.features import FloatArray
    from pytest_neuralpower.layers import Layer
    from pytest_neuralpower.platform.price import FittedPlatform

#: Deviations of logarithms, over sources of whole networks on one board: what a stack runs all
#: kinds by, what it runs a kind by beyond that, and kinds whose rows the platform lacks.
_STACK, _KIND, _UNMEASURED_KIND = 0.3, 0.2, 0.35
#: What a call repeats within.
_CALL: Final = 0.05

_LEAST_CALLS: Final = 2
#: Fewer do not tell kinds apart, even if a lucky call left out says so.
_LEAST_FOR_KINDS: Final = 5


class Adaptation(msgspec.Struct, frozen=True):
    """What a user's calls showed.

    Attributes
    ----------
    before, after
        Mean absolute error of calls, percent: as the platform is, and each without itself.
    chosen
        ``nothing``, ``one factor`` or ``one factor a kind``.
    factors
        On the runtime of each family of layers.
    power_factor
        On the power of all; 1 where calls were not metered.
    calls
        Of each: model, measured and predicted runtime before, ms, and as left out.
    """

    before: float
    after: float
    chosen: str
    factors: Mapping[str, float]
    power_factor: float
    calls: Sequence[tuple[str, float, float, float]]

    def text(self) -> str:
        """A line a call, and what was taken over."""
        lines = [
            f"  {name}: measured {measured:.4g} ms, predicted {before:.4g} ms, "
            f"left out {left_out:.4g} ms"
            for name, measured, before, left_out in self.calls
        ]
        if self.chosen == "nothing":
            lines.append(
                "runtime is not adapted: no factor predicts calls that were left out better than "
                f"the platform as it is ({self.before:.1f}% off)"
            )
        else:
            lines.append(
                f"runtime is adapted by {self.chosen}: calls left out are {self.after:.1f}% off, "
                f"{self.before:.1f}% before"
            )
        if self.power_factor != 1.0:
            lines.append(f"power is {self.power_factor:.3g} times the platform's, as metered")
        return "\n".join(lines)


def adapt(
    platform: FittedPlatform,
    runs: Path,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[FittedPlatform, Adaptation]:
    """The platform by a user's calls, and what they showed.

    Parameters
    ----------
    platform
        A fitted one, in the mode that the calls ran in.
    runs
        Table of the calls: :func:`~pytest_neuralpower.calibrate.fit.calls.run_calls`.

    Returns
    -------
    FittedPlatform, Adaptation
        The platform as it was, where nothing predicts better.

    Raises
    ------
    ProfileError
        The table cannot be read, or a call cannot be traced.
    FitError
        There is one call: what it shows cannot be judged; or one has no time.
    """
    source = Source(title=f"calls of {runs.name}", reader="runs", path=runs.name)
    recipe = Recipe(platform.name, platform.mode, fused=platform.fused, folder=runs.parent)
    calls, _ = read_calls(recipe, source, None, progress)
    if any(np.isnan(call.runtime_ms) for call in calls):
        raise FitError(f"{runs}: each call needs runtime_ms to adapt by")
    if len(calls) < _LEAST_CALLS:
        raise FitError(
            f"{runs}: {len(calls)} call cannot be judged, as none is left out; time another network"
        )
    names, parts = _parts(platform, calls)
    measured = np.array([call.runtime_ms for call in calls])
    check_units(calls, parts.sum(axis=1), platform, runs)
    known = np.array([name in platform.families for name in names])
    chosen, factors, left_out = choose_factors(parts, measured, known)
    before, after = (
        round(100 * float(np.abs(each / measured - 1).mean()), 2)
        for each in (parts.sum(axis=1), left_out)
    )
    metered = [
        call.energy_mj / call.runtime_ms / watts
        for call in calls
        if call.energy_mj and (watts := platform.predict(_layers(call)).power_w)
    ]
    found = Adaptation(
        before,
        after,
        chosen,
        {name: _rounded(factor) for name, factor in zip(names, factors.tolist(), strict=True)},
        _rounded(float(np.exp(np.mean(np.log(metered))))) if metered else 1.0,
        [
            (call.name, each, before, after)
            for call, each, before, after in zip(
                calls, measured.tolist(), parts.sum(axis=1).tolist(), left_out.tolist(), strict=True
            )
        ],
    )
    if chosen == "nothing" and found.power_factor == 1.0:
        return platform, found
    off = np.log(measured / left_out)
    return _adapted(platform, found, few_distance(off), runs), found


def choose_factors(
    parts: FloatArray, measured: FloatArray, known: NDArray[np.bool_]
) -> tuple[str, FloatArray, FloatArray]:
    """What predicts calls that are left out best, its factors, and these predictions, ms.

    Parameters
    ----------
    parts
        What the platform says of each family in each call, ms, shape ``(calls, families)``.
    measured
        Runtime of each call, ms.
    known
        Families that the platform has rows of.
    """
    calls = range(len(measured))
    choices = ["one factor"]
    if len(calls) >= _LEAST_FOR_KINDS:
        choices.append("one factor a kind")
    best = "nothing", np.ones(parts.shape[1]), parts.sum(axis=1)
    least = float(np.abs(best[2] / measured - 1).mean())
    for choice in choices:  # the simpler first: it stays where the next is no better
        left_out = np.array(
            [
                float(parts[place] @ _factors(parts, measured, known, choice, without=place))
                for place in calls
            ]
        )
        error = float(np.abs(left_out / measured - 1).mean())
        if error < least:
            best = choice, _factors(parts, measured, known, choice), left_out
            least = error
    return best


def _layers(call: TimedCall) -> list[Layer]:
    return [layer for layer, count in call.layers for _ in range(count)]


def _parts(
    platform: FittedPlatform, calls: Sequence[TimedCall]
) -> tuple[tuple[str, ...], FloatArray]:
    """Families, and what the platform says each takes of every call, ms, ``(calls, families)``."""
    rows: list[dict[str, float]] = []
    for call in calls:
        row: dict[str, float] = {}
        counts = [count for _, count in call.layers]
        priced = platform.predict([layer for layer, _ in call.layers]).layers
        for each, count in zip(priced, counts, strict=True):
            name = family(each.layer)
            row[name] = row.get(name, 0.0) + (each.runtime_ms or 0.0) * count
        rows.append(row)
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return names, np.array([[row.get(name, 0.0) for name in names] for row in rows])


def _factors(
    parts: FloatArray,
    measured: FloatArray,
    known: NDArray[np.bool_],
    chosen: str,
    *,
    without: int | None = None,
) -> FloatArray:
    """Factors of the families: most likely of normal logarithms, large errors by their size."""
    try:
        from scipy.optimize import least_squares  # noqa: PLC0415 - only fitting needs it
    except ImportError:
        raise need_extra("SciPy") from None
    seen = np.arange(len(measured)) != (-1 if without is None else without)
    kinds = len(known) if chosen == "one factor a kind" else 0
    deviation = np.where(known, _KIND, _UNMEASURED_KIND)[:kinds]

    def logs(values: FloatArray) -> FloatArray:
        return np.asarray(values[0] + (values[1:] if kinds else np.zeros(len(known))))

    def residuals(values: FloatArray) -> FloatArray:
        off = np.log(parts[seen] @ np.exp(logs(values)) / measured[seen]) / _CALL
        # Huber's: beyond three deviations an error counts by its size.
        size = np.abs(off)
        off = np.sign(off) * np.where(size > 3, np.sqrt(np.maximum(6 * size - 9, 0)), size)
        return np.concatenate([off, [values[0] / _STACK], values[1:] / deviation])

    start = np.zeros(1 + kinds)
    start[0] = np.median(np.log(measured[seen] / parts[seen].sum(axis=1)))
    return np.asarray(np.exp(logs(least_squares(residuals, start).x)))


def _adapted(
    platform: FittedPlatform, found: Adaptation, distance: float, runs: Path
) -> FittedPlatform:
    factors = {name: factor for name, factor in found.factors.items() if factor != 1.0}
    provenance = {
        **platform.provenance,
        "adapted": {
            "from": platform.name,
            "from_sha256": platform.sha256,
            "runs": runs.name,
            **msgspec.to_builtins(found),
        },
    }
    adapted = replace(
        platform,
        name=f"{platform.name}-adapted",
        tiers={
            **platform.tiers,
            **({"runtime": "adapted"} if factors else {}),
            **({"power": "adapted"} if found.power_factor != 1.0 else {}),
        },
        factors=factors,
        power_factor=found.power_factor,
        provenance=provenance,
    )
    return with_total_error(adapted, distance)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
