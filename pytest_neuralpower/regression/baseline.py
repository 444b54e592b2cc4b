"""Baseline: the accepted prediction of one model, with the configurations of its layers.

Because configurations are stored, it can be predicted again on today's calibration, so that a
recalibrated platform never shows as a change of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pytest_neuralpower.errors import BaselineError
from pytest_neuralpower.layers import Trace
from pytest_neuralpower.prediction import add_known, mean_power
from pytest_neuralpower.regression.layer_record import PricedLayer, rounded

if TYPE_CHECKING:
    from pytest_neuralpower.platform import AnyPlatform
    from pytest_neuralpower.prediction import Prediction

__all__ = ["Baseline", "Totals"]


class Totals(NamedTuple):
    """Energy (mJ), runtime (ms) and mean power (W) of one call."""

    energy_mj: float | None
    runtime_ms: float | None
    power_w: float | None


@dataclass(frozen=True, slots=True)
class Baseline:
    """What one call of one model was predicted to cost when that was accepted.

    Attributes
    ----------
    test
        Node id of the test that predicted it.
    model
        Name of the model's class.
    batch
        Samples in one call.
    platform, platform_sha256
        Which calibration predicted it.
    torch
        Version of torch that traced it.
    layers
        In order of execution.
    """

    test: str
    model: str
    batch: int
    platform: str
    platform_sha256: str
    torch: str
    layers: tuple[PricedLayer, ...]

    @property
    def totals(self) -> Totals:
        """Sums over the layers, as they are stored."""
        runtime_ms = add_known([item.runtime_ms for item in self.layers])
        energy_mj = add_known([item.energy_mj for item in self.layers])
        return Totals(energy_mj, runtime_ms, mean_power(energy_mj, runtime_ms))

    def repredict(self, platform: AnyPlatform) -> Prediction:
        """Predict the stored configurations on a platform.

        Raises
        ------
        BaselineError
            A stored configuration cannot be priced: it was edited by hand.
        """
        layers = tuple(item.layer for item in self.layers)
        try:
            return platform.predict(Trace(layers, batch=self.batch, model=self.model))
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise BaselineError(
                f"baseline of {self.test}: a layer cannot be priced ({error}): restore the file, "
                "or write it again with --np-update-baseline"
            ) from None


def baseline_of(prediction: Prediction, *, test: str, torch: str) -> Baseline:
    """The baseline that accepts a prediction; values are rounded as they are stored."""
    return Baseline(
        test=test,
        model=prediction.model,
        batch=prediction.batch,
        platform=prediction.platform,
        platform_sha256=prediction.platform_sha256,
        torch=torch,
        layers=tuple(
            PricedLayer(
                item.layer, rounded(item.runtime_ms), rounded(item.power_w), rounded(item.energy_mj)
            )
            for item in prediction.layers
        ),
    )
