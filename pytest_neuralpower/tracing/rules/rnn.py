"""Recurrent layers: LSTM, GRU and plain RNN, their packed form and their cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from pytest_neuralpower.layers import GATES
from pytest_neuralpower.tracing.fallbacks import NoRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pytest_neuralpower.tracing.recorder import Recorder
    from pytest_neuralpower.tracing.rules.table import Rule
    from pytest_neuralpower.tracing.strides import Ints


def _recurrent(recorder: Recorder, op: str, *args: Any) -> Any:
    """One call of ``torch.lstm`` and its like, in either overload.

    Padded: ``(input, hx, weights, has_biases, num_layers, dropout, train, bidirectional,
    batch_first)``; packed: ``(data, batch_sizes, hx, weights, has_biases, num_layers, dropout,
    train, bidirectional)``.
    """
    mode = op.upper()
    packed = not isinstance(args[3], bool)
    data = args[0]
    hx, weights, _biases, layers, _dropout, _train, bidirectional = args[2 if packed else 1 :][:7]
    batch_first = not packed and args[8]
    hidden_states = hx if mode == "LSTM" else (hx,)
    directions = 2 if bidirectional else 1
    hidden = weights[0].shape[0] // GATES[mode]
    recurrent = hidden_states[0].shape[-1]
    if weights[0].shape[1] != data.shape[-1] or data.ndim != (2 if packed else 3):
        raise NoRule
    if packed:
        steps = data.shape[0]  # one row of a packed input is one step of one sample
        batch = hidden_states[0].shape[1]
    else:
        steps = data.shape[0] * data.shape[1]
        batch = data.shape[0 if batch_first else 1]
    if tuple(hidden_states[0].shape) != (layers * directions, batch, recurrent):
        raise NoRule
    dtype = recorder.autocast(data.dtype)
    data = recorder.cast(data, dtype)
    params = {"bidirectional": bool(bidirectional), "hidden_size": hidden, "num_layers": layers}
    if recurrent != hidden:
        params["proj_size"] = recurrent
    output: Ints = (*data.shape[:-1], recurrent * directions)
    shapes = [tuple(state.shape) for state in hidden_states]
    # With batch_first torch computes time-major and answers a transposed view.
    width = output[-1]
    swapped = (width, output[0] * width, 1) if batch_first else None
    results = [recorder.new(output, dtype, swapped), *[recorder.new(one, dtype) for one in shapes]]
    _list_rnn(recorder, op, data, hidden_states, weights, results, mode=mode, steps=steps, **params)
    return tuple(results)


def _cell(
    recorder: Recorder,
    op: str,
    input: Tensor,
    hx: Any,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Any:
    """One step; ``hx`` is the hidden state, of an LSTM the hidden and the cell state."""
    mode = op.removesuffix("_cell").upper()
    states = 2 if mode == "LSTM" else 1
    shape = tuple((hx[0] if mode == "LSTM" else hx).shape)
    if (
        w_ih.shape != (GATES[mode] * shape[-1], input.shape[-1])
        or input.ndim != len(shape)
        or input.shape[:-1] != shape[:-1]
    ):
        raise NoRule
    dtype = recorder.autocast(input.dtype)
    data = recorder.cast(input, dtype)
    results = tuple([recorder.new(shape, dtype) for _ in range(states)])
    _list_rnn(
        recorder, op, data, hx if mode == "LSTM" else (hx,), (w_ih, w_hh, b_ih, b_hh), results,
        mode=mode, bidirectional=False, hidden_size=shape[-1], num_layers=1,
        steps=input.shape[0] if input.ndim > 1 else 1,
    )  # fmt: skip
    return results if mode == "LSTM" else results[0]


def _list_rnn(
    recorder: Recorder,
    op: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    results: Sequence[Tensor],
    **params: Any,
) -> None:
    recorder.add(
        "rnn",
        op.removesuffix("_tanh").removesuffix("_relu"),
        (recorder.spec(input),),
        recorder.weight_specs(*weights),
        map(recorder.spec, results),
        tuple(sorted(params.items())),
        reads=(input, *states, *weights),
        makes=results,
    )


def _pack_padded_sequence(
    recorder: Recorder, op: str, input: Tensor, lengths: Tensor, batch_first: bool
) -> tuple[Tensor, Tensor]:
    """Rows of the samples still running at each step; the lengths are real by then."""
    if lengths.is_meta:
        raise NoRule
    times = [int(length) for length in lengths.tolist()]
    sizes = [sum(1 for time in times if time > step) for step in range(max(times))]
    shape = (sum(times), *input.shape[2:])
    data = recorder.result("memory", op, (input,), shape, input.dtype)
    return data, torch.tensor(sizes, dtype=torch.int64)


def _pad_packed_sequence(
    recorder: Recorder,
    op: str,
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
    padded = recorder.new((steps, sizes[0], *data.shape[1:]), data.dtype)
    if batch_first:
        swapped = padded.transpose(0, 1)
        padded = recorder.new(swapped.shape, data.dtype, swapped.stride())
    recorder.record("memory", op, (data,), padded)
    lengths = [sum(1 for size in sizes if size > row) for row in range(sizes[0])]
    return padded, torch.tensor(lengths, dtype=torch.int64)


RULES: Final[dict[Any, Rule]] = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _cell),
    "_pack_padded_sequence": _pack_padded_sequence,
    "_pad_packed_sequence": _pad_packed_sequence,
}
