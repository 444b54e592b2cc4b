"""NeuSight's lines become the layers that were timed, without the overhead of their place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_neuralpower.calibrate.fit.readers import (
    neusight_bmm,
    neusight_conv,
    neusight_linear,
    neusight_vec,
)
from pytest_neuralpower.estimators.features import family
from pytest_neuralpower.layers import cost_terms

if TYPE_CHECKING:
    from pathlib import Path

CONV = """\
Device,Latency,B,Input_Channel,Output_Channel,Kernel_Size,Input_Size,Stride,Padding
T,1.0,8,16,32,3,14,1,1
other,9.0,8,16,32,3,14,1,1
T,2.0,4,16,64,3,7,1,1
T,,4,16,64,3,7,1,1
T,0.05,1,3,8,3,7,1,1
"""


@pytest.fixture
def conv(tmp_path: Path) -> Path:
    path = tmp_path / "conv.csv"
    path.write_text(CONV)
    return path


def test_a_convolution_has_its_shape_and_line(conv: Path) -> None:
    first, second, *_ = neusight_conv(conv, {"select": {"Device": "T"}})
    assert first.layer.outputs[0].shape == (8, 32, 14, 14)
    assert (second.line, second.runtime_ms) == (4, 2.0)
    assert first.place is None
    assert first.overhead_ms == 0.0


def test_an_overhead_that_grows_along_the_table_is_taken_off(conv: Path) -> None:
    options = {"select": {"Device": "T"}, "drift_ms": [0.4, 0.8]}
    first, second, missing, short = neusight_conv(conv, options)
    assert (first.place, first.overhead_ms, first.runtime_ms) == (0.0, 0.0, 1.0)
    assert second.place == 0.25
    assert second.overhead_ms == pytest.approx(0.4 * 0.25 + 0.8 * 0.25**2)
    assert second.runtime_ms == pytest.approx(2.0 - second.overhead_ms)
    assert "without a latency" in missing.flaw
    assert "overhead" in short.flaw


def test_columns_of_fully_connected_layers_are_rows_inputs_outputs(tmp_path: Path) -> None:
    path = tmp_path / "linear.csv"
    path.write_text("split,Device,Latency,B,M,N,K\ntrain,T,0.5,1,6,10,20\n")
    (row,) = neusight_linear(path, {})
    assert row.layer.weights[0].shape == (20, 10)
    assert row.layer.outputs[0].shape == (6, 20)
    assert cost_terms(row.layer).flops == 2 * 6 * 10 * 20


def test_batched_products_keep_their_batch(tmp_path: Path) -> None:
    path = tmp_path / "bmm.csv"
    path.write_text("Device,Latency,B,M,N,K\nT,0.5,5,6,10,20\n")
    (row,) = neusight_bmm(path, {})
    assert row.layer.outputs[0].shape == (5, 6, 20)
    assert cost_terms(row.layer).flops == 2 * 5 * 6 * 10 * 20


@pytest.mark.parametrize(
    ("name", "kind", "tensors"),
    [
        ("add", "elementwise", 2),
        ("mulu", "elementwise", 1),
        ("gelu", "activation", 1),
        ("softmax", "softmax", 1),
        ("ln", "norm", 1),
    ],
)
def test_vector_operations_read_the_tensors_they_have(
    tmp_path: Path, name: str, kind: str, tensors: int
) -> None:
    path = tmp_path / "vec.csv"
    path.write_text(f"OPName,Device,Latency,B,H\n{name},T,0.5,32,64\n")
    (row,) = neusight_vec(path, {})
    assert family(row.layer) == kind
    assert len(row.layer.inputs) == tensors
    terms = cost_terms(row.layer)
    assert (terms.bytes_in, terms.bytes_out) == (tensors * 32 * 64 * 4, 32 * 64 * 4)
