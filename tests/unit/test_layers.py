"""Cost terms against numbers worked out by hand."""

from __future__ import annotations

import pytest

from pytest_neuralpower.layers import KINDS, CostTerms, Layer, TensorSpec


def spec(*shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(shape, dtype)


def layer(kind, op, inputs, weights, outputs, **params) -> Layer:
    return Layer(
        kind, op, "", tuple(inputs), tuple(weights), tuple(outputs), "float32",
        tuple(sorted(params.items())),
    )  # fmt: skip


CASES = {
    "conv": (
        layer(
            "conv", "conv2d", [spec(2, 4, 8, 8)], [spec(6, 4, 3, 3), spec(6)],
            [spec(2, 6, 6, 6)],
        ),
        CostTerms(
            2 * 2 * 6 * 6 * 6 * 36, 4 * 512, 4 * 432, 4 * (216 + 6), 4 * 2 * 36 * 9 * 4
        ),
    ),
    "grouped conv": (
        layer(
            "conv", "conv2d", [spec(1, 8, 4, 4)], [spec(8, 1, 3, 3)], [spec(1, 8, 4, 4)],
            groups=8,
        ),
        CostTerms(2 * 128 * 9, 512, 512, 288, 4 * 16 * 9 * 8),
    ),
    "transposed conv": (
        layer(
            "conv", "conv_transpose2d", [spec(1, 4, 5, 5)], [spec(4, 3, 2, 2)],
            [spec(1, 3, 10, 10)], transposed=True,
        ),
        CostTerms(2 * 100 * 12, 400, 1200, 192, 4 * 25 * 4 * 3),
    ),
    "linear": (
        layer("linear", "linear", [spec(3, 5, 7)], [spec(11, 7), spec(11)], [spec(3, 5, 11)]),
        CostTerms(2 * 165 * 7, 420, 660, 4 * 88, 0),
    ),
    "matmul": (
        layer("matmul", "matmul", [spec(2, 3, 4), spec(2, 4, 5)], [], [spec(2, 3, 5)]),
        CostTerms(2 * 30 * 4, 4 * (24 + 40), 120, 0, 0),
    ),
    "attention": (
        layer(
            "attention", "scaled_dot_product_attention",
            [spec(2, 4, 6, 8), spec(2, 4, 10, 8), spec(2, 4, 10, 16)], [], [spec(2, 4, 6, 16)],
        ),
        CostTerms(
            2 * 2 * 4 * 6 * 10 * 24, 4 * (384 + 640 + 1280), 4 * 768, 0, 4 * 2 * 4 * 6 * 10
        ),
    ),
    "lstm": (
        layer(
            "rnn", "lstm", [spec(5, 2, 3)], [spec(16, 3), spec(16, 4)], [spec(5, 2, 8)],
            mode="LSTM", hidden_size=4, num_layers=2, bidirectional=True, steps=10,
        ),
        CostTerms(2 * 10 * 2 * (16 * 7 + 16 * 12), 120, 320, 4 * (48 + 64), 0),
    ),
    "max pool": (
        layer("pool", "max_pool2d", [spec(1, 2, 4, 4)], [], [spec(1, 2, 2, 2)], kernel=(2, 2)),
        CostTerms(8 * 4, 128, 32, 0, 0),
    ),
    "adaptive pool": (
        layer("pool", "adaptive_avg_pool2d", [spec(1, 2, 7, 7)], [], [spec(1, 2, 1, 1)]),
        CostTerms(98, 392, 8, 0, 0),
    ),
    "batch norm": (
        layer("norm", "batch_norm", [spec(1, 2, 3)], [spec(2), spec(2)], [spec(1, 2, 3)]),
        CostTerms(12, 24, 24, 16, 0),
    ),
    "embedding": (
        layer(
            "embedding", "embedding", [spec(2, 3, dtype="int64")], [spec(1000, 8)],
            [spec(2, 3, 8)],
        ),
        CostTerms(0, 48, 192, 192, 0),
    ),
    "mean": (
        layer("reduction", "mean", [spec(4, 10)], [], [spec(4)]),
        CostTerms(40, 160, 16, 0, 0),
    ),
    "uncovered": (
        layer("uncovered", "fft_fft", [spec(8)], [], [spec(8, dtype="complex64")]),
        CostTerms(0, 32, 64, 0, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_cost_terms_follow_the_configuration(name):
    case, expected = CASES[name]
    assert case.cost == expected
    assert case.macs * 2 in (case.cost.flops, 0)


def test_every_kind_in_a_case_is_a_kind():
    assert {case.kind for case, _ in CASES.values()} <= set(KINDS)
    assert [case.covered for case, _ in CASES.values()].count(False) == 1


def test_half_precision_halves_the_bytes_and_not_the_operations():
    case, _ = CASES["linear"]
    half = Layer(
        case.kind, case.op, case.path,
        tuple(tensor._replace(dtype="bfloat16") for tensor in case.inputs),
        tuple(tensor._replace(dtype="bfloat16") for tensor in case.weights),
        tuple(tensor._replace(dtype="bfloat16") for tensor in case.outputs),
        "bfloat16",
    )  # fmt: skip
    assert half.cost.flops == case.cost.flops
    assert half.cost.bytes_moved * 2 == case.cost.bytes_moved


def test_configuration_leaves_the_path_out():
    case, _ = CASES["linear"]
    moved = Layer(
        case.kind, case.op, "elsewhere", case.inputs, case.weights, case.outputs, case.dtype
    )
    assert moved.configuration == case.configuration
    assert moved != case
