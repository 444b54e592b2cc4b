"""How much two calls differ, and how surely: what both have in common cancels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from pytest_neuralpower.errors import PlatformError
from pytest_neuralpower.platform.intervals import Interval, LayerErrors, spread_of_sum

if TYPE_CHECKING:
    from pytest_neuralpower.estimators.features import FloatArray
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.units import Quantity

#: Doublings of the cost of what two calls have in common, over which the correlation of what the
#: sum of layers misses in each falls to exp(-1/2).
_MODEL_REACH: Final = 5.0


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
    device = _interval(value - down, value + up, pair[0].coverage)
    if base.host is None or head.host is None:
        return device
    return _waiting_difference(base, head, quantity, device)


def ratio_interval(
    base: Prediction, head: Prediction, quantity: Quantity = "energy"
) -> Interval | None:
    """Interval of ``head / base``, as :func:`difference_interval` but relative: 1 is unchanged.

    A platform's being off by one factor for all layers of a family cancels as far as their sizes
    are alike. Parameters and returns are those of :func:`difference_interval`.

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
    device = _interval(ratio * np.exp(-down), ratio * np.exp(up), pair[0].coverage)
    if base.host is None or head.host is None:
        return device
    return _waiting_ratio(base, head, quantity, device)


# -- Calls that may wait for their host. Of a larger of two, the change (or ratio) lies between the
# changes (or ratios) of both; which of the two it is may be sure.


def _bound(call: Prediction) -> tuple[bool, bool]:
    """Whether the device surely takes longer than the host, and whether the host surely does."""
    assert call.errors is not None  # the caller has looked
    assert call.host is not None
    low, high = call.errors.total("runtime")
    launch = call.host.layer_ms * call.launches
    return launch * call.host.factor <= low, launch / call.host.factor >= high


def _hull(device: Interval, host: tuple[float, float], bound: Sequence[bool]) -> Interval:
    """What holds both, or the one that is sure."""
    by_device, by_host = bound
    if by_device:
        return device
    if by_host:
        return device._replace(low=host[0], high=host[1])
    return device._replace(low=min(device.low, host[0]), high=max(device.high, host[1]))


def _bounds(base: Prediction, head: Prediction) -> tuple[bool, bool]:
    ends = list(zip(_bound(base), _bound(head), strict=True))
    return all(ends[0]), all(ends[1])


def _host_difference(base: Prediction, head: Prediction) -> tuple[float, float]:
    """Interval of the difference of what launching takes: both calls have one host."""
    assert head.host is not None  # the caller has looked
    value = head.host.layer_ms * (head.launches - base.launches)
    ends = value / head.host.factor, value * head.host.factor
    return min(ends), max(ends)


def _waiting_difference(
    base: Prediction, head: Prediction, quantity: Quantity, device: Interval
) -> Interval:
    bound = _bounds(base, head)
    launches = _host_difference(base, head)
    if quantity == "runtime":
        return _hull(device, launches, bound)
    if bound[0]:
        return device
    if quantity == "power":
        before, after = base.power_interval_w, head.power_interval_w
        assert before is not None  # its errors are known
        assert after is not None
        return device._replace(low=after.low - before.high, high=after.high - before.low)
    alone = replace(base, host=None), replace(head, host=None)
    time = difference_interval(alone[0], alone[1], "runtime")
    assert time is not None  # its errors are known
    assert head.host is not None
    # How much longer the device waits: what launching takes more, less what the layers do.
    longer = time._replace(low=launches[0] - time.high, high=launches[1] - time.low)
    longer = _hull(longer, (0.0, 0.0), (bound[1], False))
    watts = head.host.waiting_w or 0.0
    return device._replace(
        low=device.low + watts * longer.low, high=device.high + watts * longer.high
    )


def _waiting_ratio(
    base: Prediction, head: Prediction, quantity: Quantity, device: Interval
) -> Interval:
    bound = _bounds(base, head)
    if quantity == "runtime":
        launches = head.launches / base.launches  # the host's factor cancels
        return _hull(device, (launches, launches), bound)
    if bound[0]:
        return device
    before, after = (
        each.energy_interval_mj if quantity == "energy" else each.power_interval_w
        for each in (base, head)
    )
    assert before is not None  # its errors are known
    assert after is not None
    # What both have in common is not told apart where the device may or may not wait.
    return device._replace(low=after.low / before.high, high=after.high / before.low)


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
    model_error = pair[0].model_errors[quantity]
    # Where the same place of the model is in both, what the sum of layers misses there is common,
    # the more so the less these places have changed.
    places = [[(item.layer.path, item.layer.kind) for item in each.layers] for each in (base, head)]
    common = set(places[0]) & set(places[1])
    kept, costs, alone = [], [], 0.0
    for where, amounts, each in zip(places, signed, pair, strict=True):
        mask = np.array([place in common for place in where])
        kept.append(float(amounts[mask].sum()))
        costs.append(float(each.amounts(quantity)[mask].sum()))
        alone += float(amounts[~mask].sum()) ** 2
    alike = 0.0
    if min(costs) > 0:
        alike = float(np.exp(-0.5 * (np.log2(costs[1] / costs[0]) / _MODEL_REACH) ** 2))
    squared = kept[0] ** 2 + kept[1] ** 2 + 2 * alike * kept[0] * kept[1] + alone
    missed = float(np.sqrt(max(squared, 0.0))) * float(np.expm1(model_error))
    return float(np.hypot(down, missed)), float(np.hypot(up, missed))


def _interval(low: float, high: float, coverage: float) -> Interval:
    return Interval(float(low), float(high), coverage)
