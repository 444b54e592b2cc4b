"""What is said with every result of pruning: how far its figures can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from pytest_neuralpower.eyeriss.platform import EyerissPlatform
from pytest_neuralpower.prediction import EXTRAPOLATED
from pytest_neuralpower.units import show, show_percent

if TYPE_CHECKING:
    from pytest_neuralpower.platform import AnyPlatform
    from pytest_neuralpower.prediction import Prediction
    from pytest_neuralpower.remedy.calls import Call
    from pytest_neuralpower.units import Quantity

__all__ = ["ROWS_WANTED", "statements", "warnings_of"]

#: Rows of sampled feature maps per weight of an output, below which least squares may overfit.
ROWS_WANTED = 5


def statements(after: Prediction, platform: AnyPlatform, quantity: Quantity) -> tuple[str, ...]:
    """Sentences that hold for the figures of ``after``."""
    said = ["Energy and runtime are predicted, not measured."]
    interval = after.energy_interval_mj if quantity == "energy" else after.runtime_interval_ms
    if interval is None:
        said.append(f"Platform {platform.name} has no interval to say how sure it is.")
    else:
        said.append(
            f"{interval.coverage:.0%} interval after pruning: {show(quantity, interval.low)} to "
            f"{show(quantity, interval.high)}."
        )
    return (
        *said,
        f"It holds for a batch of {after.batch} and the inputs' shapes and layout given.",
        _energy_of(platform, after),
    )


def _energy_of(platform: AnyPlatform, after: Prediction) -> str:
    if isinstance(platform, EyerissPlatform):
        return (
            f"Energy is of table {platform.costs.name} ({after.energy_basis}); zeros of maps are "
            "counted on the calibration data, before and after."
        )
    return f"Energy is {after.energy_basis}, on platform {platform.name}."


def warnings_of(
    after: Prediction,
    *,
    rows_per_unknown: Mapping[str, float],
    left_out: Mapping[str, str],
    scored: bool,
    guarded: bool,
) -> tuple[str, ...]:
    """Sentences about what may be wrong.

    Parameters
    ----------
    rows_per_unknown
        Of the layers solved by least squares.
    left_out
        Layers or channel groups that are not pruned as asked, with the reason.
    scored, guarded
        Whether there is a ``score_fn``, and a ``max_drop``.
    """
    found = []
    if not scored:
        found.append("Accuracy is unchecked: give score_fn, and max_drop to guard it.")
    elif not guarded:
        found.append("Accuracy is not guarded: give max_drop.")
    few = {path: rows for path, rows in rows_per_unknown.items() if rows < ROWS_WANTED}
    if few:
        path = min(few, key=few.__getitem__)
        layers = "1 layer has" if len(few) == 1 else f"{len(few)} layers have"
        found.append(
            f"{layers} fewer than {ROWS_WANTED} sampled rows per unknown "
            f"({path}: {few[path]:.1f}): give more calibration data."
        )
    share = after.share(EXTRAPOLATED)
    if share:
        found.append(
            f"{show_percent(share)} of the call after pruning is extrapolated: widths or sizes "
            "that the platform was not calibrated on."
        )
    if left_out:
        named = "; ".join(f"{path} ({why})" for path, why in left_out.items())
        found.append(f"Not pruned as asked: {named}.")
    return tuple(found)


def input_texts(call: Call) -> tuple[str, ...]:
    """Shapes of the call's tensors as ``--input`` takes them."""
    named = [*((None, value) for value in call.args), *call.kwargs.items()]
    return tuple(
        f"{name}={_shape(value)}" if name else _shape(value)
        for name, value in named
        if isinstance(value, torch.Tensor)
    )


def _shape(tensor: torch.Tensor) -> str:
    text = ",".join(map(str, tensor.shape))
    dtype = str(tensor.dtype).removeprefix("torch.")
    return text if dtype == "float32" else f"{text}:{dtype}"
