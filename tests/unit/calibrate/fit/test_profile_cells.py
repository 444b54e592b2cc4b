"""Layers written into a profile's cells come back the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_neuralpower.layer_codec import (
    params_text,
    read_params,
    read_tensors,
    tensors_text,
)
from pytest_neuralpower.layers import TensorSpec

sizes = st.lists(st.integers(0, 5000), max_size=5).map(tuple)
tensors = st.builds(TensorSpec, sizes, st.sampled_from(["float32", "bfloat16", "int64", "bool"]))
names = st.from_regex(r"[a-z_]{1,9}", fullmatch=True)
words = st.sampled_from(["LSTM", "mean", "max", "nearest", "ij,jk->ik"])
values = st.one_of(
    st.booleans(),
    st.integers(-9, 10**9),
    st.floats(allow_nan=False),
    st.lists(st.integers(-9, 999), max_size=4).map(tuple),
    words,
)


@given(st.lists(tensors, max_size=4).map(tuple))
def test_shapes_and_dtypes_come_back(written: tuple[TensorSpec, ...]) -> None:
    assert read_tensors(tensors_text(written, "float32"), "float32") == written


@given(st.dictionaries(names, values, max_size=5))
def test_hyper_parameters_come_back_with_their_types(written: dict[str, object]) -> None:
    params = tuple(sorted(written.items()))
    found = read_params(params_text(params))  # type: ignore[arg-type]
    assert found == params
    assert [type(value) for _, value in found] == [type(value) for _, value in params]
