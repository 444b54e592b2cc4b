"""How much two calls differ, and how surely: what both have in common cancels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pytest_neuralpower.errors import PlatformError
from pytest_neuralpower.platform.intervals import Interval, LayerErrors, spread_of_sum

if TYPE_CHECKING:
    from pytest_neuralpower.estimators.features import FloatArray
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.units import Quantity

__all__ = ["difference_interval", "ratio_interval"]


def difference_interval(
    base: Prediction, head: Prediction, quantity: Quantity = "energy"
) -> Interval | None:
    """Interval of ``head - base``, both predicted on one platform.

    What both have in common cancels, so it is narrower than either total's interval where little
    has changed; two equal predictions differ by 0.

    Parameters
    ----------
    base, head
        Predictions of two versions of a model, or of two models.
    quantity
        ``energy`` (mJ), ``runtime`` (ms) or ``power`` (W).

    Returns
    -------
    Interval or None
        None where the platform has no intervals, or does not predict the quantity.

    Raises
    ------
    PlatformError
        The predictions are of different platforms: no error is known to be common.
    """
    pair = _pair(base, head, quantity)
    if pair is None:
        return None
    signed = [-pair[0].amounts(quantity), pair[1].amounts(quantity)]
    down, up = _changed(base, head, pair, signed, quantity)
    value = float(signed[0].sum() + signed[1].sum())
    return _interval(value - down, value + up, pair[0].coverage)


def ratio_interval(
    base: Prediction, head: Prediction, quantity: Quantity = "energy"
) -> Interval | None:
    """Interval of ``head / base``, as :func:`difference_interval` but relative: 1 is unchanged.

    The device's being off by one factor for every layer cancels fully.

    Raises
    ------
    PlatformError
        The predictions are of different platforms.
    """
    pair = _pair(base, head, quantity)
    if pair is None:
        return None
    totals = [float(each.amounts(quantity).sum()) for each in pair]
    signed = [
        sign * each.amounts(quantity) / total
        for sign, each, total in zip((-1.0, 1.0), pair, totals, strict=True)
    ]
    down, up = _changed(base, head, pair, signed, quantity)
    ratio = totals[1] / totals[0]
    # Shares of the totals: the change of the ratio's logarithm, to first order.
    return _interval(ratio * np.exp(-down), ratio * np.exp(up), pair[0].coverage)


def _pair(
    base: Prediction, head: Prediction, quantity: Quantity
) -> tuple[LayerErrors, LayerErrors] | None:
    if base.platform_sha256 != head.platform_sha256:
        raise PlatformError(
            f"a difference needs both predictions of one platform, not of {base.platform!r} "
            f"({base.platform_sha256[:8]}) and {head.platform!r} ({head.platform_sha256[:8]}): "
            "predict both again on one"
        )
    if base.errors is None or head.errors is None or not base.errors.knows(quantity):
        return None
    return base.errors, head.errors


def _changed(
    base: Prediction,
    head: Prediction,
    pair: tuple[LayerErrors, LayerErrors],
    signed: Sequence[FloatArray],
    quantity: Quantity,
) -> tuple[float, float]:
    """How far a signed sum over two predictions may lie below and above its point."""
    down, up = spread_of_sum(pair, signed, quantity)
    model_error = pair[0]._model_errors[quantity]
    # Where the same place of the model is in both, what the sum of layers misses there is common.
    places = [[(item.layer.path, item.layer.kind) for item in each.layers] for each in (base, head)]
    common = set(places[0]) & set(places[1])
    kept = alone = 0.0
    for where, amounts in zip(places, signed, strict=True):
        mask = np.array([place in common for place in where])
        kept += float(amounts[mask].sum())
        alone += float(amounts[~mask].sum()) ** 2
    missed = float(np.sqrt(kept**2 + alone)) * float(np.expm1(model_error))
    return float(np.hypot(down, missed)), float(np.hypot(up, missed))


def _interval(low: float, high: float, coverage: float) -> Interval:
    return Interval(float(low), float(high), coverage)
