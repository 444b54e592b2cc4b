"""Compare two sets of predictions, each model with itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.errors import CompareError, NeuralPowerError, PlatformError
from pytest_neuralpower.platform import load_platform
from pytest_neuralpower.prediction import LayerPrediction, Prediction
from pytest_neuralpower.regression.comparison import compare_predictions, judge
from pytest_neuralpower.regression.comparison_record import comparison_record

if TYPE_CHECKING:
    from pytest_neuralpower.platform import AnyPlatform
    from pytest_neuralpower.regression.baseline import Baseline
    from pytest_neuralpower.regression.comparison import Comparison
    from pytest_neuralpower.regression.sources import Source
    from pytest_neuralpower.regression.tolerance import Tolerance

__all__ = ["compare_sources", "exit_code"]


def compare_sources(
    base: Source, head: Source, *, platforms: Sequence[str], tolerance: Tolerance
) -> list[dict[str, Any]]:
    """What :func:`~pytest_neuralpower.reports.compare.compare_text` shows, sorted by name.

    Parameters
    ----------
    platforms
        Files of platforms that are not shipped.

    Raises
    ------
    CompareError
        The two have no model in common.
    """
    if not set(base) & set(head):
        raise CompareError(
            "no model is in both: compared are predictions of one name on one platform; BASE has "
            f"{_named(base)}, HEAD has {_named(head)}"
        )
    loaded = {each.name: each for each in map(load_platform, platforms)}
    found = []
    for key in sorted({*base, *head}):
        result: dict[str, Any] = {
            "name": key.name,
            "platform": key.platform,
            "outcome": "ok",
            "comparison": None,
            "error": None,
        }
        if key not in base or key not in head:
            result["outcome"] = "removed" if key in base else "new"
        else:
            try:
                comparison = _compare(base[key], head[key], loaded)
                breaches = judge(comparison, tolerance)
                result["comparison"] = comparison_record(comparison, breaches)
                result["outcome"] = "regressed" if breaches else "ok"
            except NeuralPowerError as error:
                result.update(outcome="failed", error=str(error))
        found.append(result)
    return found


def _named(source: Source) -> str:
    names = [f"{key.name} ({key.platform})" for key in sorted(source)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _compare(base: Baseline, head: Baseline, loaded: Mapping[str, AnyPlatform]) -> Comparison:
    """On today's platform; as stored where that is not here and both are of one calibration."""
    try:
        platform = loaded.get(head.platform) or load_platform(head.platform)
    except PlatformError:
        if base.platform_sha256 != head.platform_sha256:
            raise CompareError(
                f"the two were predicted on different calibrations of {head.platform!r}, which is "
                "not shipped: give its file with --platform, to predict both again"
            ) from None
        sides = _as_stored(base), _as_stored(head)
    else:
        sides = base.repredict(platform), head.repredict(platform)
    return compare_predictions(*sides, base.totals, base.platform_sha256)


def _as_stored(baseline: Baseline) -> Prediction:
    return Prediction(
        tuple(
            LayerPrediction(each.layer, each.runtime_ms, each.power_w, each.energy_mj, "stored")
            for each in baseline.layers
        ),
        baseline.platform,
        baseline.platform_sha256,
        batch=baseline.batch,
        model=baseline.model,
    )


def exit_code(found: Sequence[Mapping[str, Any]]) -> int:
    """2 if any could not be compared, 1 if any costs too much more, 0 otherwise."""
    outcomes = {each["outcome"] for each in found}
    return 2 if "failed" in outcomes else 1 if "regressed" in outcomes else 0
