"""Random networks: drawn again from their seed, priced layer by layer, finite."""

from __future__ import annotations

import pytest
import torch

from pytest_neuralpower.calibrate.measure.networks import TEMPLATES, build, sketch
from pytest_neuralpower.calibrate.measure.networks.blocks import Draw
from pytest_neuralpower.tracing import trace

CPU = torch.device("cpu")
SEEDS = range(6)


def small_seed(template: str) -> int:
    """The first seed whose network computes little."""
    for seed in range(200):
        model, inputs = sketch(template, seed, dtype=torch.float32)
        if trace(model, *inputs).flops < 5e8:
            return seed
    raise AssertionError(f"no small {template} in 200 seeds")


@pytest.mark.parametrize("template", TEMPLATES)
class TestEveryTemplate:
    def test_every_layer_has_a_formula(self, template):
        for seed in SEEDS:
            model, inputs = sketch(template, seed, dtype=torch.float32)
            traced = trace(model, *inputs)
            assert traced.route == "function"
            assert not traced.fallbacks
            assert all(layer.covered for layer in traced)

    def test_a_seed_draws_the_same_network_again(self, template):
        for seed in SEEDS:
            first, second = (
                trace(*_call(sketch(template, seed, dtype=torch.float32))) for _ in range(2)
            )
            assert first.layers == second.layers

    def test_its_output_is_finite_and_not_all_zero(self, template):
        model, inputs = build(template, small_seed(template), dtype=torch.float32, device=CPU)
        with torch.inference_mode():
            output = model(*inputs)
        assert torch.isfinite(output).all()
        assert output.abs().max() > 0


def _call(network):
    model, inputs = network
    return model, *inputs


class TestDraw:
    def test_widths_are_aligned_and_odd(self):
        draw = Draw("widths")
        widths = [draw.width(16, 1024) for _ in range(400)]
        assert 0.5 < sum(width % 8 == 0 for width in widths) / 400 < 0.9
        assert sum(width % 2 for width in widths) > 20

    def test_maps_reach_the_large_end(self):
        draw = Draw("maps")
        sizes = [batch * c * h * w for batch, c, h, w in (draw.image() for _ in range(400))]
        assert max(sizes) * 4 > 32e6  # bytes: allocators and caches change their ways there
        assert min(sizes) < 1e4


def test_another_dtype_is_asked_of_weights_and_inputs():
    model, inputs = sketch("plain", 3, dtype=torch.bfloat16)
    assert {each.dtype for each in (*model.parameters(), *inputs)} == {torch.bfloat16}
