"""The paper's five networks, layer for layer: the accounting that Paleo printed, to 0.01 ms."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pytest_neuralpower import Layer, trace

REPOSITORY = Path(__file__).parents[2]


def networks() -> ModuleType:
    """``budgets/networks.py``, whatever else is called ``networks``."""
    spec = importlib.util.spec_from_file_location(
        "paper_networks", REPOSITORY / "budgets/networks.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


NETWORKS = networks()


def accounted_ms(layer: Layer) -> float:
    """Paleo's time of one convolution: operations at 6144 GFLOP/s, then bytes at 336.5 GiB/s."""
    batch, channels, *spatial = layer.inputs[0].shape
    padded = [size + 2 * pad for size, pad in zip(spatial, layer.param("padding"), strict=True)]
    elements = batch * channels * math.prod(padded)
    elements += layer.weights[0].numel + layer.outputs[0].numel
    return 1e3 * (2 * layer.macs / 6144e9 + 4 * elements / 2**30 / 336.5)


@pytest.mark.parametrize("network", NETWORKS.NETWORKS, ids=lambda network: network.name)
@pytest.mark.parametrize("activations", [False, True])
def test_the_convolutions_add_up_to_what_paleo_printed(network, activations: bool) -> None:
    model, example = NETWORKS.meta_call(network, activations=activations)
    layers = [layer for layer in trace(model, example) if layer.kind == "conv"]
    assert round(sum(map(accounted_ms, layers)), 2) == network.golden_ms


@pytest.mark.parametrize("network", NETWORKS.NETWORKS, ids=lambda network: network.name)
def test_the_paper_s_row_is_consistent(network) -> None:
    # Power x time = energy in every measured row; the batch is the paper's.
    assert network.paper_w * network.paper_ms / 1e3 == pytest.approx(network.paper_j, rel=2e-3)
    assert network.input_shape[0] == (64 if network.name == "VGG-16" else 128)


def test_the_paper_s_own_errors_follow_from_the_table() -> None:
    def rmspe(predicted: str) -> float:
        errors = [getattr(each, predicted) / each.paper_ms - 1 for each in NETWORKS.NETWORKS]
        return 100 * math.sqrt(sum(error**2 for error in errors) / len(errors))

    assert rmspe("neuralpower_ms") == pytest.approx(11.76, abs=0.01)
    assert rmspe("paleo_ms") == pytest.approx(28, abs=1)


@pytest.mark.parametrize("network", NETWORKS.NETWORKS, ids=lambda network: network.name)
def test_activations_come_with_biases(network) -> None:
    model, example = NETWORKS.meta_call(network, activations=True)
    found = list(trace(model, example))
    convs = [layer for layer in found if layer.kind == "conv"]
    assert all(len(layer.weights) == 2 for layer in convs)
    assert sum(layer.kind == "activation" for layer in found) >= len(convs) - 1
