"""The five networks of the NeuralPower paper, guarded on the Titan X with the project's own plugin.

    pytest budgets --np-platform=titanx

A budget is about a tenth above the prediction, rounded: room for a refit, none for a regression.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_neuralpower import Prediction

    Guard = Callable[[str], Prediction]


@pytest.mark.energy_budget(j=54)
@pytest.mark.runtime_budget(ms=295)
def test_vgg16(guard: Guard) -> None:
    guard("VGG-16")


@pytest.mark.energy_budget(j=6.8)
@pytest.mark.runtime_budget(ms=37)
def test_alexnet_v2(guard: Guard) -> None:
    guard("AlexNet v2")


@pytest.mark.energy_budget(mj=86, per="sample")
def test_nin(guard: Guard) -> None:
    guard("NIN")


@pytest.mark.energy_budget(j=19)
def test_overfeat(guard: Guard) -> None:
    guard("Overfeat")


@pytest.mark.energy_budget(j=4.8)
@pytest.mark.power_budget(w=250)
def test_cifar10_6conv(guard: Guard) -> None:
    prediction = guard("CIFAR10-6conv")
    # A prediction is a plain value too: no layer alone takes half of the call.
    assert prediction.energy_mj is not None
    assert all(2 * (layer.energy_mj or 0) < prediction.energy_mj for layer in prediction.layers)
