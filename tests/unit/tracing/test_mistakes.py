"""A user's mistake gets one line: the module, the layer, the shapes, what to do."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pytest_neuralpower.errors import NeuralPowerError, TraceError
from pytest_neuralpower.tracing import trace

NET = nn.Sequential(
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Flatten(), nn.Linear(144, 5)
)


def message(model: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(TraceError) as error:
        trace(model, *args, **kwargs)
    text = str(error.value)
    assert "\n" not in text
    assert isinstance(error.value, NeuralPowerError)
    return text


def test_wrong_number_of_channels_names_the_convolution() -> None:
    text = message(NET, torch.randn(1, 4, 8, 8))
    for part in ("Sequential", "'0.0' (Conv2d)", "conv2d", "(1, 4, 8, 8)", "(4, 3, 3, 3)", "check"):
        assert part in text


def test_wrong_resolution_names_the_classifier() -> None:
    text = message(NET, torch.randn(1, 3, 9, 9))
    assert "'2' (Linear)" in text
    assert "(1, 196)" in text


def test_wrong_dtype_is_refused() -> None:
    text = message(NET, torch.randn(1, 3, 8, 8).double())
    assert "'0.0' (Conv2d)" in text
    assert "float64" in text


def test_indices_that_are_no_integers_get_a_hint() -> None:
    text = message(nn.Sequential(nn.Embedding(10, 4)), torch.randn(1, 8))
    assert "'0' (Embedding)" in text
    assert ":int64" in text
    assert ":int64" not in message(NET, torch.randn(1, 3, 8, 8).double())


def test_image_too_small_for_the_kernel() -> None:
    assert "'0.0' (Conv2d)" in message(NET, torch.randn(1, 3, 2, 2))


@pytest.mark.parametrize("args", [(), (torch.randn(1, 3, 8, 8), torch.randn(1))])
def test_wrong_number_of_arguments_shows_the_signature(args: Any) -> None:
    text = message(NET, *args)
    assert "does not take these arguments" in text
    assert "(input)" in text


def test_unknown_keyword_is_named() -> None:
    assert "'mask'" in message(NET, torch.randn(1, 3, 8, 8), mask=None)
    assert "(unknown argument 'x'); it takes (input)" in message(NET, x=torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (torch.relu, "relu"),
        (nn.Linear, "class Linear"),
        (None, "NoneType"),
        ({"state": 1}, "dict"),
        ("resnet50", "str"),
    ],
)
def test_anything_but_a_module_is_refused(value: Any, named: str) -> None:
    text = message(value, torch.randn(1))
    assert "torch.nn.Module" in text
    assert named in text


def test_input_of_a_wrong_type() -> None:
    assert "Sequential" in message(NET, [1.0, 2.0])
    assert "Sequential" in message(NET, None)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), [1, 3, 8, 8]])
def test_a_shape_for_a_tensor_says_how_to_make_one(shape: Any) -> None:
    text = message(NET, shape)
    assert "argument 1 is a shape: give a tensor of it, torch.empty(1, 3, 8, 8)" in text


def test_a_numpy_array_says_how_to_make_a_tensor() -> None:
    assert "argument 1 is a numpy array: give torch.from_numpy" in message(NET, np.ones((1, 3)))
    assert "input is a numpy array" in message(NET, input={"pixels": np.ones((1, 3))})


def test_error_of_the_model_s_own_code_is_told() -> None:
    class Strict(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[-1] != 4:
                raise ValueError("width must be 4")
            return x

    text = message(nn.Sequential(Strict()), torch.randn(1, 5))
    assert "'0' (Strict) given (1, 5) float32" in text
    assert "ValueError: width must be 4" in text


def test_mismatched_matrix_product_names_both_shapes() -> None:
    class Product(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a @ b

    text = message(Product(), torch.randn(2, 3), torch.randn(4, 5))
    assert "matmul cannot take (2, 3) float32, (4, 5) float32" in text


def test_broadcast_mismatch_names_both_shapes() -> None:
    class Sum(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    assert "add cannot take (3,) float32, (4,) float32" in message(
        Sum(), torch.randn(3), torch.randn(4)
    )


def test_user_s_own_attention_to_a_torch_error_is_kept() -> None:
    class Tries(nn.Module):
        def forward(self, a: torch.Tensor) -> torch.Tensor:
            try:
                return a @ torch.ones(7, 7)
            except RuntimeError:
                return a * 2

    assert [layer.op for layer in trace(Tries(), torch.randn(2, 3))][-1] == "mul"


class Ragged(nn.Module):
    """Pads nested rows, after a layer."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 8)
        self.layout = layout

    def forward(self, *rows: torch.Tensor) -> torch.Tensor:
        nested = (
            rows[0]
            if rows[0].is_nested
            else torch.nested.as_nested_tensor([*rows], layout=self.layout)
        )
        return torch.nested.to_padded_tensor(self.fc(nested), 0.0)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.parametrize("inside", [False, True])
def test_nested_tensors_are_refused_with_what_to_do(layout: torch.layout, inside: bool) -> None:
    rows = torch.randn(3, 16), torch.randn(7, 16)
    given = rows if inside else (torch.nested.nested_tensor([*rows], layout=layout),)
    with pytest.raises(TraceError, match=r"nested.*to_padded_tensor") as refusal:
        trace(Ragged(layout), *given)
    assert "\n" not in str(refusal.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_module_scripted_alone_has_no_forward(kind: Any) -> None:
    with pytest.raises(TraceError, match=r"no forward.*script a module that calls it"):
        trace(torch.jit.script(kind(4, 4)), torch.randn(5, 2, 4))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_failure_inside_torchscript_tells_its_reason() -> None:
    traced = torch.jit.trace(nn.GRU(4, 4), torch.randn(5, 2, 4))
    with pytest.raises(TraceError, match="shapes cannot be multiplied"):
        trace(traced, torch.randn(5, 2, 3))


def nested_modules(depth: int) -> nn.Module:
    model: nn.Module = nn.Linear(4, 4)
    for _ in range(depth):
        model = nn.Sequential(model)
    return model


@pytest.mark.parametrize("depth", [200, 1000])
def test_modules_are_traced_however_deep_they_are_nested(depth: int) -> None:
    model, limit = nested_modules(depth), sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(1000)
        assert trace(model, torch.randn(2, 4)).macs == 32
        assert sys.getrecursionlimit() == 1000
    finally:
        sys.setrecursionlimit(limit)


def test_modules_nested_too_deeply_are_refused() -> None:
    with pytest.raises(TraceError, match=r"too deeply.*setrecursionlimit"):
        trace(nested_modules(4000), torch.randn(2, 4))


def test_traceback_shows_none_of_torch() -> None:
    with pytest.raises(TraceError) as error:
        trace(NET, torch.randn(1, 4, 8, 8))
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__
