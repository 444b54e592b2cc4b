"""NeuSight (Lee, Phanishayee, Mahajan, ASPLOS 2025): layers timed on GPUs in PyTorch 2.1, fp32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from pytest_neuralpower.calibrate.fit.readers.table import Options, selected
from pytest_neuralpower.calibrate.fit.rows import (
    Row,
    conv_layer,
    linear_layer,
    matmul_layer,
    streaming_layer,
)
from pytest_neuralpower.estimators.base import need_extra
from pytest_neuralpower.estimators.selection import Score
from pytest_neuralpower.estimators.terms import assign, evaluate
from pytest_neuralpower.layers import Layer, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pytest_neuralpower.estimators import Estimator, Physical
    from pytest_neuralpower.estimators.features import Columns, FloatArray
    from pytest_neuralpower.estimators.selection import Selection

_UNMEASURED: Final = "without a latency"


def neusight_conv(path: Path, options: Options) -> list[Row]:
    """Convolutions of random sizes, 3x3 of stride 1.

    Every latency holds an overhead that has nothing to do with the layer: it grows along the
    table, in the order in which rows were measured, by the same milliseconds for large layers
    and for small ones. Option ``drift_ms: [a, b]`` subtracts ``a u + b u**2`` from the latency
    of a row that stands at share ``u`` of the selected rows.
    """
    lines = list(selected(path, options))
    drifts = "drift_ms" in options
    linear, square = options.get("drift_ms", (0.0, 0.0))
    rows = []
    for above, (line, record) in enumerate(lines):
        size, kernel = int(record["Input_Size"]), int(record["Kernel_Size"])
        layer = conv_layer(
            (int(record["B"]), int(record["Input_Channel"]), size, size),
            cout=int(record["Output_Channel"]),
            kernel=(kernel, kernel),
            stride=(int(record["Stride"]),) * 2,
            padding=(int(record["Padding"]),) * 2,
        )
        if not record["Latency"]:
            rows.append(Row(layer, 0.0, line=line, flaw=_UNMEASURED))
            continue
        share = above / len(lines)
        overhead = linear * share + square * share**2
        runtime = float(record["Latency"]) - overhead
        flaw = "" if runtime > 0 else "shorter than the overhead of its place in the table"
        place = share if drifts else None
        row = Row(layer, runtime, line=line, flaw=flaw, place=place, overhead_ms=overhead)
        rows.append(row)
    return rows


def neusight_linear(path: Path, options: Options) -> list[Row]:
    """Fully connected layers. Columns are not BLAS's: M rows of N features become K."""
    return [
        _timed(
            linear_layer(int(record["M"]), int(record["N"]), int(record["K"]), bias=True),
            record["Latency"],
            line,
        )
        for line, record in selected(path, options)
    ]


def neusight_bmm(path: Path, options: Options) -> list[Row]:
    """Batched products: B of (M x N) by (N x K)."""
    rows = []
    for line, record in selected(path, options):
        batch, m, n, k = (int(record[name]) for name in ("B", "M", "N", "K"))
        rows.append(_timed(matmul_layer((batch, m, n), (batch, n, k)), record["Latency"], line))
    return rows


#: What each name of the table runs: kind, torch's name, whether its second operand is a tensor.
_VECTOR: Final = {
    "add": ("elementwise", "add", True),
    "mul": ("elementwise", "mul", True),
    "div": ("elementwise", "div", True),
    "pow": ("elementwise", "pow", True),
    "addu": ("elementwise", "add", False),
    "mulu": ("elementwise", "mul", False),
    "divu": ("elementwise", "div", False),
    "powu": ("elementwise", "pow", False),
    "relu": ("activation", "relu", False),
    "gelu": ("activation", "gelu", False),
    "tanh": ("activation", "tanh", False),
    "softmax": ("softmax", "softmax", False),
    "ln": ("norm", "layer_norm", False),
}


def neusight_vec(path: Path, options: Options) -> list[Row]:
    """Elementwise operations, activations, layer norms and softmaxes of (B, H) tensors."""
    rows = []
    for line, record in selected(path, options):
        kind, op, two = _VECTOR[record["OPName"]]
        shape = (int(record["B"]), int(record["H"]))
        if kind == "norm":
            layer = _layer_norm(shape)
        else:
            layer = streaming_layer(kind, op, [shape] * (2 if two else 1), shape)
        rows.append(_timed(layer, record["Latency"], line))
    return rows


def _layer_norm(shape: tuple[int, int]) -> Layer:
    tensor, weight = TensorSpec(shape, "float32"), TensorSpec(shape[1:], "float32")
    params = (("normalized_shape", shape[1:]),)
    return Layer(
        "norm", "layer_norm", "", (tensor,), (weight, weight), (tensor,), "float32", params
    )


def _timed(layer: Layer, latency: str, line: int) -> Row:
    if not latency:
        return Row(layer, 0.0, line=line, flaw=_UNMEASURED)
    return Row(layer, float(latency), line=line)


# -- Latencies that hold an overhead of their place in the table, which no layer causes.
#
# Some tables were measured in one long process whose overhead grew: every latency is the layer's
# plus ``a u + b u**2`` ms, ``u`` being the share of the table above its row. A layer in use has no
# place, so the overhead is taken off before a fit; here it is estimated, and what it does to the
# held-out errors is told from training folds alone.


def growing_overhead(
    physical: Physical, columns: Columns, published_ms: FloatArray, place: FloatArray
) -> tuple[float, float]:
    """The overhead's ``(a, b)`` in ms, fitted together with the layers' own cost.

    Non-negative least squares, weighted 1/y, on the regimes' terms, ``u`` and ``u**2``. Rows in
    random order share nothing with their place, so what ``u`` explains is not the layers'.

    Parameters
    ----------
    physical
        Says which terms price which rows; need not be fitted.
    columns, published_ms, place
        Of the rows: their columns, latencies in ms with the overhead, and ``u``; shape ``(rows,)``.
    """
    try:
        from scipy.optimize import nnls  # noqa: PLC0415 - only fitting needs it
    except ImportError:
        raise need_extra("SciPy") from None
    chosen = assign(physical.regimes, columns)
    parts = [
        np.where(chosen == index, evaluate(term, columns, physical.multiprocessors), 0.0)
        for index, regime in enumerate(physical.regimes)
        for term in regime.terms
        if (chosen == index).any()
    ]
    matrix = np.stack([*parts, place, place**2], axis=1) / published_ms[:, None]
    size = np.maximum(np.linalg.norm(matrix, axis=0), 1e-30)
    rates, _ = nnls(matrix / size, np.ones(len(published_ms)))
    linear, square = (rates / size)[-2:]
    return float(f"{linear:.4g}"), float(f"{square:.4g}")


def judge_overhead(
    rows: Sequence[Row],
    columns: Columns,
    selection: Selection,
    physical: Callable[[], Estimator] | None,
) -> dict[str, Any] | None:
    """Held-out errors of the chosen estimator with the overhead ignored and with it known.

    Each fold is predicted by an estimator, and by an overhead, from the other folds alone.

    Returns
    -------
    dict or None
        ``rows``; ``removed_ms`` of the last row, by the recipe and by each fold; and the scores
        ``ignored`` (fitted and judged as published), ``added`` (judged as published, the overhead
        of the row's place added to the layer's time) and ``removed`` (taken off the judged rows).
        None when no row has a place.
    """
    known = np.array([row.place is not None for row in rows])
    if not known.any() or physical is None:
        return None
    place = np.array([row.place or 0.0 for row in rows])
    published = np.array([row.runtime_ms + row.overhead_ms for row in rows])
    groups = [row.shape_group for row in rows]
    ignored, alone, overhead = (np.zeros(len(rows)) for _ in range(3))
    ends = []
    for number in range(selection.folds):
        seen = selection.fold != number
        without = {name: each[seen] for name, each in columns.items()}
        linear, square = growing_overhead(
            cast("Physical", physical()), without, published[seen], place[seen]
        )
        ends.append(round(linear + square, 4))
        fold_overhead = linear * place + square * place**2
        overhead[~seen] = fold_overhead[~seen]
        for predicted, target in ((ignored, published), (alone, published - fold_overhead)):
            predicted[~seen] = _predicted(selection, columns, target, seen, groups)
    judged = known & (published > overhead)
    scores = {
        "ignored": Score.of(ignored[judged], published[judged]),
        "added": Score.of((alone + overhead)[judged], published[judged]),
        "removed": Score.of(alone[judged], (published - overhead)[judged]),
    }
    last = int(np.argmax(np.where(known, place, -1.0)))
    return {
        "rows": int(judged.sum()),
        "removed_ms": {"recipe": round(rows[last].overhead_ms, 4), "folds": ends},
        "scores": {name: score.to_json() for name, score in scores.items()},
    }


def _predicted(
    selection: Selection,
    columns: Columns,
    target: FloatArray,
    seen: NDArray[np.bool_],
    groups: Sequence[Any],
) -> FloatArray:
    """What the chosen estimator, fitted to the seen rows whose target is positive, says of the
    others."""
    used = np.flatnonzero(seen & (target > 0))
    estimator = selection.make().fit(
        {name: each[used] for name, each in columns.items()},
        target[used],
        groups=[groups[row] for row in used.tolist()],
    )
    return estimator.predict({name: each[~seen] for name, each in columns.items()})
