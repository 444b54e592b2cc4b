"""Readers of public tables: measured rows in memory, never copied into the repository."""

from __future__ import annotations

import csv
import gzip
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_neuralpower.calibrate.rows import (
    Row,
    conv_layer,
    linear_layer,
    matmul_layer,
    pool_layer,
    streaming_layer,
)
from pytest_neuralpower.errors import ProfileError

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Layer

#: Where the public tables are, when they are not in ``../shared/data`` beside the repository.
DATA_VARIABLE: Final = "NEURALPOWER_DATA"

Options = Mapping[str, Any]


def data_root(repository: Path) -> Path:
    """Folder of the public tables.

    Raises
    ------
    ProfileError
        It is neither where the environment says nor at the default place.
    """
    named = os.environ.get(DATA_VARIABLE)
    root = Path(named) if named else repository.parent / "shared" / "data"
    if not root.is_dir():
        raise ProfileError(
            f"no public tables at {root}: set {DATA_VARIABLE} to the folder that has deepbench/ "
            "and convnet-benchmarks/"
        )
    return root


def read_table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a CSV file (gzipped or not) with their number; the header is line 1."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            yield from enumerate(csv.DictReader(file), start=2)
    except FileNotFoundError:
        raise ProfileError(f"{path}: there is no such table; see its recipe's sources") from None


def _selected(path: Path, options: Options) -> Iterator[tuple[int, dict[str, str]]]:
    wanted = {str(column): value for column, value in options.get("select", {}).items()}
    for line, record in read_table(path):
        if all(
            record[column] in value if isinstance(value, list) else record[column] == value
            for column, value in wanted.items()
        ):
            yield line, record


def deepbench_conv(path: Path, options: Options) -> list[Row]:
    """DeepBench's forward convolutions (Baidu Research): ``select`` names column values."""
    rows = []
    for line, record in _selected(path, options):
        number = {key: int(record[key]) for key in ("N", "C", "H", "W", "K")}
        layer = conv_layer(
            (number["N"], number["C"], number["H"], number["W"]),
            cout=number["K"],
            kernel=(int(record["R_filter_h"]), int(record["S_filter_w"])),
            stride=(int(record["stride_h"]), int(record["stride_w"])),
            padding=(int(record["pad_h"]), int(record["pad_w"])),
        )
        rows.append(Row(layer, float(record["forward_ms"]), line=line))
    return rows


def deepbench_gemm(path: Path, options: Options) -> list[Row]:
    """DeepBench's matrix products, as the layers that make cuBLAS run them.

    A product is column-major there: ``C (M x N) = op(A) (M x K) op(B) (K x N)``. With row-major
    tensors a fully connected layer of N samples, K inputs and M outputs is that product with A
    transposed when the weight is ``(M, K)`` as in PyTorch, and with neither transposed when it is
    ``(K, M)`` as in TensorFlow. Option ``as`` is ``linear`` or ``matmul``.
    """
    rows = []
    for line, record in _selected(path, options):
        m, n, k = (int(record[key]) for key in ("M", "N", "K"))
        layer = linear_layer(n, k, m) if options["as"] == "linear" else matmul_layer((n, k), (k, m))
        rows.append(Row(layer, float(record["time_ms"]), line=line))
    return rows


_WINDOW: Final = re.compile(r"(\d+)x\d+(?:_s(\d))?")
_BRANCHES: Final = ("1x1", "3x3", "5x5", "pool_proj")


def caffe_layers(path: Path, options: Options) -> list[Row]:
    """convnet-benchmarks' layers of four networks timed by ``caffe time``: ``kinds`` to keep.

    Reads convolutions (with bias), pools (max, and GoogLeNet's last one average), ReLUs (in
    place: read and written once) and concatenations. Splits launch nothing and inputs compute
    nothing: left out. The table has each layer's output; its input is the layer below.
    """
    rows: list[Row] = []
    shapes: dict[str, tuple[int, ...]] = {}
    network, block = "", ""
    previous: tuple[int, ...] = ()
    entered: tuple[int, ...] = ()
    for line, record in read_table(path):
        name = record["layer"]
        if record["network"] != network:
            network, shapes = record["network"], {}
        top = tuple(int(size) for size in record["top_shape"].split())
        if not top:  # the network's total
            continue
        if name.split("/")[0] != block:
            block, entered = name.split("/")[0], previous
        below = shapes.get(f"{name}_reduce", entered if name.startswith("inception") else previous)
        layer = _caffe_layer(name, top, below, shapes)
        if layer is not None and layer.kind in options["kinds"]:
            rows.append(Row(layer, float(record["forward_ms"]), line=line))
        shapes[name] = previous = top
    return rows


def _caffe_layer(
    name: str, top: tuple[int, ...], below: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
) -> Layer | None:
    if name.endswith("_split") or name == "input":
        return None
    if "relu" in name:
        return streaming_layer("activation", "relu", [top], top)
    if name.endswith("/output"):
        block = name.removesuffix("output")
        return streaming_layer("memory", "cat", [shapes[block + each] for each in _BRANCHES], top)
    if len(top) == 2:
        depth = below[1] * below[2] * below[3] if len(below) == 4 else below[1]
        return linear_layer(top[0], depth, top[1], bias=True)
    found = _WINDOW.search(name)
    if name.endswith("/pool"):  # inside an inception block: 3x3, stride 1, same size
        size, step = 3, 1
    elif name.endswith(("/pool_proj", "_reduce")):
        size, step = 1, 1
    elif found is None:  # AlexNet's first convolution is not named for its kernel
        size, step = 11, 4
    else:
        size, step = int(found[1]), int(found[2] or 1)
    if name.endswith("/pool") or name.startswith("pool"):
        op = "avg_pool2d" if size == 7 else "max_pool2d"
        pad = 1 if step == 1 and size == 3 else 0
        return pool_layer(
            below, top, op=op, kernel=(size, size), stride=(step, step), padding=(pad, pad)
        )
    # The smallest padding that gives the output's size.
    pad = next(pad for pad in range(size) if (below[2] + 2 * pad - size) // step + 1 == top[2])
    return conv_layer(
        below,
        cout=top[1],
        kernel=(size, size),
        stride=(step, step),
        padding=(pad, pad),
        bias=True,
    )


#: Readers by the name that recipes use.
READERS: Final[Mapping[str, Callable[[Path, Options], list[Row]]]] = {
    "deepbench_conv": deepbench_conv,
    "deepbench_gemm": deepbench_gemm,
    "caffe_layers": caffe_layers,
}
