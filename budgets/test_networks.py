"""What a budget file cannot say: predictions are plain values."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_neuralpower.plugin.session import NeuralPower

sys.path.insert(0, str(Path(__file__).parent))
from networks import PAPER_TABLE, meta_call


def test_no_layer_alone_takes_half_of_the_call(neuralpower: NeuralPower) -> None:
    prediction = neuralpower.predict(*meta_call(PAPER_TABLE["CIFAR10-6conv"]))
    assert prediction.energy_mj is not None
    assert all(2 * (layer.energy_mj or 0) < prediction.energy_mj for layer in prediction.layers)
