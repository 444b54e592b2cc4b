"""convnet-benchmarks: layers of whole networks timed by ``caffe time``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from pytest_neuralpower.calibrate.readers.table import Options, read_table
from pytest_neuralpower.calibrate.rows import (
    Row,
    conv_layer,
    linear_layer,
    pool_layer,
    streaming_layer,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_neuralpower.layers import Layer

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
