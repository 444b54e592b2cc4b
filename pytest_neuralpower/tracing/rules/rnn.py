"""Recurrent layers: LSTM, GRU and plain RNN, their packed form and their cells."""

# ruff: noqa: A002, ARG001, PLR0917
# A rule has the signature of its torch function, names, order and unused arguments included.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_neuralpower.layers import TensorSpec
from pytest_neuralpower.tracing.fallbacks import NoRule
from pytest_neuralpower.tracing.recorder import dtype_name
from pytest_neuralpower.tracing.rules.table import rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder

__all__: list[str] = []

Ints = tuple[int, ...]

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def _recurrent(mode: str, recorder: Recorder, args: Sequence[Any]) -> Any:
    """One call of ``torch.lstm`` and its like, in either overload.

    Padded: ``(input, hx, weights, has_biases, num_layers, dropout, train, bidirectional,
    batch_first)``; packed: ``(data, batch_sizes, hx, weights, has_biases, num_layers, dropout,
    train, bidirectional)``.
    """
    packed = not isinstance(args[3], bool)
    data = args[0]
    hx, weights, _biases, layers, _dropout, _train, bidirectional = args[2 if packed else 1 :][:7]
    batch_first = not packed and args[8]
    hidden_state = hx[0] if mode == "LSTM" else hx
    directions = 2 if bidirectional else 1
    hidden = weights[0].shape[0] // _GATES[mode]
    recurrent = hidden_state.shape[-1]
    if weights[0].shape[1] != data.shape[-1] or data.ndim != (2 if packed else 3):
        raise NoRule
    if packed:
        steps = data.shape[0]  # one row of a packed input is one step of one sample
        batch = hidden_state.shape[1]
    else:
        steps = data.shape[0] * data.shape[1]
        batch = data.shape[0 if batch_first else 1]
    if tuple(hidden_state.shape) != (layers * directions, batch, recurrent):
        raise NoRule
    dtype = recorder.autocast(data.dtype)
    params: list[tuple[str, Any]] = [
        ("bidirectional", bool(bidirectional)),
        ("hidden_size", hidden),
        ("mode", mode),
        ("num_layers", layers),
    ]
    if recurrent != hidden:
        params.append(("proj_size", recurrent))
    params.append(("steps", steps))
    output: Ints = (*data.shape[:-1], recurrent * directions)
    states = [tuple(state.shape) for state in (hx if mode == "LSTM" else (hx,))]
    op = mode.partition("_")[0].lower()
    _list_rnn(recorder, op, data, weights, [output, *states], params, dtype)
    # With batch_first torch computes time-major and answers a transposed view.
    width = output[-1]
    swapped = (width, output[0] * width, 1) if batch_first else None
    results = [recorder.new(output, dtype, swapped)]
    return (*results, *[recorder.new(shape, dtype) for shape in states])


def _list_rnn(
    recorder: Recorder,
    op: str,
    input: Tensor,
    weights: Sequence[Tensor],
    outputs: Sequence[Any],
    params: list[tuple[str, Any]],
    dtype: torch.dtype,
) -> None:
    name = dtype_name(dtype)
    recorder.add(
        "rnn",
        op,
        (recorder.spec(input),),
        recorder.weight_specs(*weights),
        [TensorSpec(shape, name) for shape in outputs],
        tuple(params),
        name,
    )


@rule("lstm")
def lstm(recorder: Recorder, *args: Any) -> Any:
    return _recurrent("LSTM", recorder, args)


@rule("gru")
def gru(recorder: Recorder, *args: Any) -> Any:
    return _recurrent("GRU", recorder, args)


@rule("rnn_tanh", op="rnn")
def rnn_tanh(recorder: Recorder, *args: Any) -> Any:
    return _recurrent("RNN_TANH", recorder, args)


@rule("rnn_relu", op="rnn")
def rnn_relu(recorder: Recorder, *args: Any) -> Any:
    return _recurrent("RNN_RELU", recorder, args)


def _cell(
    mode: str,
    op: str,
    recorder: Recorder,
    input: Tensor,
    hidden: Tensor,
    weights: Sequence[Tensor | None],
) -> Tensor:
    size = hidden.shape[-1]
    weight_ih = weights[0]
    if weight_ih is None or weight_ih.shape != (_GATES[mode] * size, input.shape[-1]):
        raise NoRule
    if input.ndim != hidden.ndim or input.shape[:-1] != hidden.shape[:-1]:
        raise NoRule
    dtype = recorder.autocast(input.dtype)
    shape = tuple(hidden.shape)
    _list_rnn(
        recorder,
        op,
        input,
        [weight for weight in weights if weight is not None],
        [shape] * (2 if mode == "LSTM" else 1),
        [
            ("bidirectional", False),
            ("hidden_size", size),
            ("mode", mode),
            ("num_layers", 1),
            ("steps", input.shape[0] if input.ndim > 1 else 1),
        ],
        dtype,
    )
    return recorder.new(shape, dtype)


@rule("lstm_cell")
def lstm_cell(
    recorder: Recorder,
    input: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    hidden = _cell("LSTM", "lstm_cell", recorder, input, hx[0], (w_ih, w_hh, b_ih, b_hh))
    return hidden, recorder.new(tuple(hidden.shape), hidden.dtype)


@rule("gru_cell")
def gru_cell(
    recorder: Recorder,
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    return _cell("GRU", "gru_cell", recorder, input, hx, (w_ih, w_hh, b_ih, b_hh))


@rule("rnn_tanh_cell")
def rnn_tanh_cell(
    recorder: Recorder,
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    return _cell("RNN_TANH", "rnn_tanh_cell", recorder, input, hx, (w_ih, w_hh, b_ih, b_hh))


@rule("rnn_relu_cell")
def rnn_relu_cell(
    recorder: Recorder,
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    return _cell("RNN_RELU", "rnn_relu_cell", recorder, input, hx, (w_ih, w_hh, b_ih, b_hh))


@rule("_pack_padded_sequence")
def pack_padded_sequence(
    recorder: Recorder, input: Tensor, lengths: Tensor, batch_first: bool
) -> tuple[Tensor, Tensor]:
    """Rows of the samples still running at each step; the lengths are real by then."""
    if lengths.is_meta:
        raise NoRule
    times = [int(length) for length in lengths.tolist()]
    sizes = [sum(1 for time in times if time > step) for step in range(max(times))]
    data = recorder.new((sum(times), *input.shape[2:]), input.dtype)
    recorder.record("memory", "pack_padded_sequence", (input,), (data,))
    return data, torch.tensor(sizes, dtype=torch.int64)


@rule("_pad_packed_sequence")
def pad_packed_sequence(
    recorder: Recorder,
    data: Tensor,
    batch_sizes: Tensor,
    batch_first: bool,
    padding_value: float,
    total_length: int = -1,
) -> tuple[Tensor, Tensor]:
    if batch_sizes.is_meta:
        raise NoRule
    sizes = batch_sizes.tolist()
    steps = max(total_length, len(sizes))
    shape: Ints = (steps, sizes[0], *data.shape[1:])
    strides = None
    if batch_first:
        time_major = recorder.new(shape, data.dtype)
        strides = time_major.transpose(0, 1).stride()
        shape = (sizes[0], steps, *data.shape[1:])
    padded = recorder.new(shape, data.dtype, strides)
    lengths = [sum(1 for size in sizes if size > row) for row in range(sizes[0])]
    recorder.record("memory", "pad_packed_sequence", (data,), (padded,))
    return padded, torch.tensor(lengths, dtype=torch.int64)
