"""Columns are the layers' own cost terms, and families keep unlike kernels apart."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_neuralpower.calibrate.fit.readers import experts_layer
from pytest_neuralpower.calibrate.fit.rows import conv_layer, linear_layer, matmul_layer, pool_layer
from pytest_neuralpower.estimators.features import columns, family
from pytest_neuralpower.estimators.physics import with_batch
from pytest_neuralpower.estimators.terms import evaluate
from pytest_neuralpower.layers import CostTerms, Layer, TensorSpec, cost_terms

SIZES = st.integers(1, 40)
BIAS = st.booleans()


def transposed(layer: Layer) -> Layer:
    """The layer that undoes a plain convolution's shapes."""
    return Layer(
        layer.kind,
        "conv_transpose2d",
        "",
        layer.outputs,
        layer.weights[:1],
        layer.inputs,
        layer.dtype,
        tuple((name, True if name == "transposed" else value) for name, value in layer.params),
    )


def assert_columns_equal_cost_terms(layers: list[Layer]) -> None:
    found = columns(family(layers[0]), layers)
    for name in CostTerms._fields:
        expected = [getattr(cost_terms(layer), name) for layer in layers]
        assert found[name].tolist() == expected, name
    assert found["bytes_moved"].tolist() == [layer.cost.bytes_moved for layer in layers]


@settings(deadline=None, max_examples=60)
@given(st.tuples(SIZES, SIZES, SIZES), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]), BIAS)
def test_conv_columns_are_its_cost_terms(
    sizes: tuple[int, int, int], kernel: int, groups: int, bias: bool
) -> None:
    batch, channels, size = sizes
    shape = (batch, channels * groups, size + kernel, size + 2 * kernel)
    layer = conv_layer(
        shape, cout=6, kernel=(kernel, kernel), stride=(2, 1), padding=(1, 0), bias=bias,
        groups=groups,
    )  # fmt: skip
    assert_columns_equal_cost_terms([layer, layer])
    assert_columns_equal_cost_terms([transposed(layer)])


@pytest.mark.parametrize("spatial", [(50,), (6, 20, 30)])
def test_conv_1d_and_3d_columns_are_their_cost_terms(spatial: tuple[int, ...]) -> None:
    rank = len(spatial)
    layer = conv_layer(
        (2, 8, *spatial), cout=4, kernel=(3,) * rank, stride=(1,) * rank, padding=(1,) * rank
    )
    assert_columns_equal_cost_terms([layer])
    assert columns("conv", [layer])["dims"].tolist() == [rank]


def test_addmm_is_a_linear_layer_whose_weights_are_operands() -> None:
    """What transformers' Conv1D calls, and what ``linear`` runs."""
    given, weight, bias, result = (
        TensorSpec(shape, "float32") for shape in ((6, 8), (8, 10), (10,), (6, 10))
    )
    layer = Layer("matmul", "addmm", "", (given, weight, bias), (), (result,), "float32")
    assert family(layer) == "linear"
    found = {name: values.item() for name, values in columns("linear", [layer]).items()}
    assert (found["m"], found["n"], found["k"]) == (6, 10, 8)
    assert found["flops"] == layer.cost.flops
    assert found["bytes_weight"] == 4 * (80 + 10)
    assert found["bytes_moved"] == layer.cost.bytes_moved


def test_scaled_mm_is_a_linear_layer_that_reads_a_byte_an_element() -> None:
    given, weight = (TensorSpec(shape, "float8_e4m3fn") for shape in ((6, 8), (8, 10)))
    result = TensorSpec((6, 10), "bfloat16")
    layer = Layer("matmul", "scaled_mm", "", (given, weight), (), (result,), "float8_e4m3fn")
    assert family(layer) == "linear"
    found = {name: values.item() for name, values in columns("linear", [layer]).items()}
    assert [found[name] for name in ("bytes_in", "bytes_weight", "bytes_out")] == [48, 80, 120]


@given(SIZES, SIZES, SIZES)
def test_gemm_columns_are_their_cost_terms(rows: int, depth: int, width: int) -> None:
    assert_columns_equal_cost_terms([linear_layer(rows, depth, width, bias=True)])
    assert_columns_equal_cost_terms([matmul_layer((3, rows, depth), (3, depth, width))])


def test_pool_columns_are_their_cost_terms() -> None:
    layer = pool_layer(
        (2, 8, 28, 28), (2, 8, 14, 14), op="max_pool2d", kernel=(3, 3), stride=(2, 2),
        padding=(1, 1),
    )  # fmt: skip
    assert_columns_equal_cost_terms([layer])
    adaptive = Layer("pool", "adaptive_avg_pool2d", "", layer.inputs, (), layer.outputs, "float32")
    assert columns("pool", [adaptive])["kernel_area"].tolist() == [4.0]


def test_a_convolution_is_a_product_of_positions_channels_and_window() -> None:
    layer = conv_layer((8, 64, 56, 56), cout=128, kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    found = columns("conv", [layer])
    assert [found[name][0] for name in "mnk"] == [8 * 28 * 28, 128, 64 * 9]


@pytest.mark.parametrize(
    ("groups", "cout", "expected"), [(1, 64, "conv"), (64, 64, "conv.depthwise"), (4, 64, "conv")]
)
def test_depthwise_convolutions_are_a_family_of_their_own(
    groups: int, cout: int, expected: str
) -> None:
    layer = conv_layer(
        (1, 64, 14, 14), cout=cout, kernel=(3, 3), stride=(1, 1), padding=(1, 1), groups=groups
    )
    assert family(layer) == expected
    assert family(transposed(layer)) == "conv.transposed"


def test_a_convolution_over_the_whole_map_is_a_linear_layer() -> None:
    conv = conv_layer((64, 512, 7, 7), cout=4096, kernel=(7, 7), stride=(1, 1), padding=(0, 0))
    same = linear_layer(64, 512 * 49, 4096)
    assert family(conv) == family(same) == "linear"
    found, expected = columns("linear", [conv]), columns("linear", [same])
    # Only which function of torch runs it tells them apart.
    assert found.pop("convolved").tolist() == [1.0]
    assert expected.pop("convolved").tolist() == [0.0]
    assert {name: found[name].tolist() for name in expected} == {
        name: expected[name].tolist() for name in expected
    }


def test_columns_keep_the_order_of_the_layers() -> None:
    layers = [linear_layer(rows, 8, 8) for rows in (5, 3, 9)]
    assert np.array_equal(columns("linear", layers)["m"], [5.0, 3.0, 9.0])


def test_half_precision_halves_the_traffic() -> None:
    shape = TensorSpec((4, 4), "float16")
    layer = Layer("activation", "relu", "", (shape,), (), (shape,), "float16")
    assert columns("activation", [layer])["bytes_moved"].tolist() == [64.0]


def test_a_norm_of_a_weight_has_no_input_and_moves_the_weight() -> None:
    weight, scale = TensorSpec((64, 8, 5), "float32"), TensorSpec((1, 1, 5), "float32")
    layer = Layer("norm", "weight_norm", "", (), (weight, scale), (weight,), "float32")
    assert_columns_equal_cost_terms([layer])
    found = columns("norm", [layer])
    assert (found["rows"] * found["width"]).tolist() == [weight.numel]


class TestAttention:
    """2 samples of 3 heads over 4 positions of width 8: 2 x 3 x 4 x 4 scores, 4 x 8 FLOPs each."""

    def layer(self, *, causal: bool, length: int = 4) -> Layer:
        tensor = TensorSpec((2, 3, length, 8), "float32")
        params = (("causal", causal), ("dropout", 0.0), ("masked", False))
        op = "scaled_dot_product_attention"
        return Layer("attention", op, "", (tensor,) * 3, (), (tensor,), "float32", params)

    def test_that_is_causal_computes_the_scores_up_to_the_diagonal_alone(self) -> None:
        layers = [self.layer(causal=False), self.layer(causal=True)]
        found = columns("attention", layers)
        # A kernel computes 1 + 2 + 3 + 4 of the 16 scores; cost terms count the whole matrix.
        assert found["scored_flops"].tolist() == [2 * 3 * 16 * 32, 2 * 3 * 10 * 32]
        assert found["flops"].tolist() == [2 * 3 * 16 * 32] * 2
        assert evaluate("scores", found, 1) == pytest.approx([96e-6, 60e-6])

    def test_of_one_position_computes_its_one_score(self) -> None:
        found = columns("attention", [self.layer(causal=True, length=1)])
        assert found["scored_flops"].tolist() == [2 * 3 * 32]

    def test_skips_the_scores_above_the_diagonal_by_whole_tiles(self) -> None:
        found = columns("attention", [self.layer(causal=each) for each in (False, True)])
        # Tiles of 2 x 2, 12 rows of them: 4 full tiles of a sample's head, or 3 on and below the
        # diagonal. All at once on 12 multiprocessors; on 8 the second wave is filled up to 16.
        flops = [2 * 3 * tiles * 4 * 32 / 1e9 for tiles in (4, 3)]
        assert evaluate("attention_flops[2x2]", found, 12) == pytest.approx(flops)
        filled = [16 / 12 * each for each in flops]
        assert evaluate("attention_flops[2x2]", found, 8) == pytest.approx(filled)


class TestDecoding:
    """3 sequences of 8 heads that share 2 of keys and values, 1 query to 130 keys of width 80."""

    def layer(self, queries: int = 1, keys: int = 130) -> Layer:
        query = TensorSpec((3, 8, queries, 80), "bfloat16")
        key = TensorSpec((3, 2, keys, 80), "bfloat16")
        op = "scaled_dot_product_attention"
        return Layer("attention", op, "", (query, key, key), (), (query,), "bfloat16")

    @pytest.mark.parametrize(
        ("queries", "keys", "expected"),
        [
            (1, 130, "attention.decode"),
            (16, 17, "attention.decode"),
            (17, 130, "attention"),
            (1, 1, "attention"),
            (16, 16, "attention"),
        ],
    )
    def test_is_few_queries_to_more_keys(self, queries: int, keys: int, expected: str) -> None:
        assert family(self.layer(queries, keys)) == expected

    def test_columns_are_its_cost_terms_and_tell_sequences_from_heads(self) -> None:
        assert_columns_equal_cost_terms([self.layer()])
        found = columns("attention.decode", [self.layer()])
        expected = {"batch": 3, "heads": 24, "shared_heads": 6, "sharing": 4}
        assert {name: found[name].item() for name in expected} == expected
        assert found["cached_bytes"].item() == 2 * 6 * 130 * 80 * 2

    def test_terms_count_padded_tiles_waves_and_what_leaves_the_cache(self) -> None:
        found = columns("attention.decode", [self.layer()])

        def term(name: str, multiprocessors: int = 4) -> float:
            return float(evaluate(name, found, multiprocessors).item())

        padded = 2 * 6 * 256 * 128 / 1e6  # 130 keys fill two tiles of 128, width 80 two of 64
        assert term("cached[128x64]") == pytest.approx(padded)
        # 6 heads on 4 multiprocessors are two waves of 4; on 8 they are split, or leave 2 idle.
        assert term("wave_cached[128x64]") == pytest.approx(padded * 8 / 6)
        assert term("split_cached[128x64]") == pytest.approx(padded * 8 / 6)
        assert term("wave_cached[128x64]", 8) == pytest.approx(padded * 8 / 6)
        assert term("split_cached[128x64]", 8) == pytest.approx(padded)
        assert term("shared_waves[4]") == 2
        assert term("uncached[1]") == 0  # 0.25 MB stay in a cache of 1 MB
        assert term("uncached[0]") == pytest.approx(found["cached_bytes"].item() / 1e6)
        assert (term("wide_heads[64]"), term("wide_heads[80]")) == (6, 0)


class TestExperts:
    def layer(self, tokens: int) -> Layer:
        return experts_layer(tokens, 2, 8, 64, 96)

    def test_columns_are_its_cost_terms(self) -> None:
        layer = self.layer(3)
        assert family(layer) == "matmul.grouped"
        found = columns("matmul.grouped", [layer])
        for name in ("flops", "bytes_out", "bytes_weight"):
            assert found[name].item() == getattr(layer.cost, name)
        # Cost terms count whole bytes of the experts that are expected to be read.
        assert found["bytes_in"].item() == pytest.approx(layer.cost.bytes_in, abs=1)
        read = 8 * (1 - 0.75**3)
        assert found["groups"].item() == pytest.approx(read)
        assert found["m"].item() == pytest.approx(6 / read)

    def test_as_many_are_read_as_was_given(self) -> None:
        layer = experts_layer(3, 2, 8, 64, 96)
        layer = msgspec.structs.replace(layer, params=(("chosen", 2), ("read", 4.0)))
        found = columns("matmul.grouped", [layer])
        assert found["bytes_moved"].tolist() == [layer.cost.bytes_moved]
        assert (found["groups"].item(), found["m"].item()) == (4, 1.5)

    def test_twice_the_tokens_read_more_experts(self) -> None:
        once, twice = (columns("matmul.grouped", [self.layer(tokens)]) for tokens in (3, 6))
        found = with_batch("matmul.grouped", once, np.array([2.0]))
        assert {name: values.item() for name, values in found.items()} == pytest.approx(
            {name: values.item() for name, values in twice.items()}
        )
