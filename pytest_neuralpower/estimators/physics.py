"""The one physical model: what a layer takes at the ceilings, and what efficiency depends on.

``time = launches + max(operations / peak, traffic / bandwidth)``. Efficiencies are no part of it:
:class:`~pytest_neuralpower.estimators.correction.Bounded` learns them as a bounded factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from pytest_neuralpower.estimators.base import NonNegative, Positive
from pytest_neuralpower.estimators.features import GEMM_FAMILIES, op_code, with_experts

if TYPE_CHECKING:
    from pytest_neuralpower.estimators.features import Columns, FloatArray

#: Operations that minimal filtering saves a 3x3 convolution of stride 1: with output tiles of 2 x 2
#: it multiplies 2.25 times less (Lavin and Gray, "Fast Algorithms for Convolutional Networks",
#: CVPR 2016).
_FILTERING: Final = 2.25

#: Least time between two steps of a recurrent layer that wait for one another, ms: no kernel
#: starts and ends in less.
_LEAST_STEP_MS: Final = 0.002

#: Windows of a pool that overlap are read at this part of what streaming takes a byte: kernels of
#: pools do not keep them (two Pascal boards, whole networks of small cells).
_WINDOWS: Final = 0.7

#: From one kernel to the next on a GPU, and from one call of a library to the next, ms.
_LAUNCH_MS: Final = 0.004
_CALL_MS: Final = 0.008

#: A board of so few watts cannot sustain its peak: joules of one fp32 operation on a process of
#: 5 nm, growing with ``nm ** 0.8`` (fitted to T4, P4 and L4).
_SMALL_BOARD_W: Final = 75
_JOULES: Final = 8.2e-12

#: A processor pools without its vectors: operations of them in the time that one element of a
#: window takes, and one result with its loop. Read off the maximum pooling of two processors that
#: agree; as no third has rows of pools, what these two are off by judges them kindly.
_ELEMENT: Final = 110.0
_RESULT: Final = 1000.0

#: Tile of a matrix product that one multiprocessor computes at a time, rows by columns: the common
#: one of cuBLAS and cuDNN in single precision.
_TILE_ROWS: Final = 128
_TILE_COLUMNS: Final = 64


def plain_core_joules(process_nm: float) -> float:
    """Of one float32 operation on a GPU's plain cores, by its process."""
    return _JOULES * float((process_nm / 5) ** 0.8)


class Ceilings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a device can at most do, in one dtype.

    Attributes
    ----------
    peak_gflops
        Operations, GFLOP/s.
    bandwidth_gbs
        Memory, GB/s.
    cache_mb
        Last level of cache, MB: tensors that fit may never come from memory. Default: 0.
    units
        Multiprocessors of a GPU; 1 (default) of a processor, whose libraries do not cut work into
        tiles.
    launch_ms
        From one kernel to the next, ms. Default: 0.
    sustained_gflops
        Operations that the board's power sustains, GFLOP/s; None (default) where that is no less
        than the peak.
    """

    peak_gflops: Positive
    bandwidth_gbs: Positive
    cache_mb: NonNegative = 0.0
    units: Positive = 1.0
    launch_ms: NonNegative = 0.0
    sustained_gflops: Positive | None = None

    @classmethod
    def of(cls, hardware: Mapping[str, float]) -> Ceilings:
        """Of a platform's or recipe's ``hardware``.

        Parameters
        ----------
        hardware
            ``peak_gflops`` and ``bandwidth_gbs``; where known also ``multiprocessors`` (1),
            ``l3_mb`` or ``l2_mb`` (0), ``launch_ms`` (4 us between kernels of a GPU, 8 us between
            calls on a processor), and ``limit_w`` with ``process_nm``, which tell what the power of
            a small board sustains.

        Raises
        ------
        KeyError
            One of the two ceilings is not there.
        """
        units = float(hardware.get("multiprocessors", 1))
        launch = _LAUNCH_MS if units > 1 else _CALL_MS
        peak, limit = float(hardware["peak_gflops"]), hardware.get("limit_w")
        sustained = None
        if units > 1 and limit is not None and limit <= _SMALL_BOARD_W and "process_nm" in hardware:
            joules = plain_core_joules(hardware["process_nm"])
            sustained = min(peak, limit / joules / 1e9)
        return cls(
            peak_gflops=peak,
            bandwidth_gbs=float(hardware["bandwidth_gbs"]),
            cache_mb=float(hardware.get("l3_mb", hardware.get("l2_mb", 0.0))),
            units=units,
            launch_ms=float(hardware.get("launch_ms", launch)),
            sustained_gflops=sustained,
        )

    def at(self, peak_gflops: float) -> Ceilings:
        """The same in another dtype, of this peak; power sustains the same share of it."""
        ratio = peak_gflops / self.peak_gflops
        sustained = self.sustained_gflops and self.sustained_gflops * ratio
        return replace(self, peak_gflops=peak_gflops, sustained_gflops=sustained)

    @property
    def compute_gflops(self) -> float:
        """Operations (GFLOP/s) that can go on: the peak, or what the board's power sustains."""
        return self.sustained_gflops or self.peak_gflops

    @property
    def gpu(self) -> bool:
        """Whether libraries cut work into tiles for several multiprocessors."""
        return self.units > 1


def _operations(family: str, columns: Columns) -> FloatArray:
    """Operations that are carried out: of a causal attention those on or below the diagonal."""
    return columns["scored_flops"] if family.startswith("attention") else columns["flops"]


def traffic_bytes(family: str, columns: Columns, ceilings: Ceilings) -> FloatArray:
    """Bytes that pass between memory and the device, each tensor as often as it is read or written.

    Layer norms and softmaxes read rows again that are wider than what their threads hold;
    statistics of a batch, a group or an instance are a pass of their own.

    Parameters
    ----------
    family, columns
        Of the layers: what :func:`pytest_neuralpower.estimators.features.columns` made of them.
    ceilings
        Of the device: its cache and its multiprocessors tell what is read again.

    Returns
    -------
    ndarray
        Shape ``(rows,)``.
    """
    moved = columns["bytes_moved"]
    if family == "norm":
        tensor = columns["bytes_in"]
        by_rows = columns["op"] == op_code("layer_norm")
        by_statistics = (columns["op"] == op_code("batch_norm")) & (columns["training"] == 0)
        again = np.where(by_rows, _missed(columns, ceilings), np.where(by_statistics, 0.0, 1.0))
        return np.asarray(moved + again * tensor)
    if family == "softmax" and ceilings.gpu:
        wide = columns["width"] > 1024  # one warp holds less
        return np.asarray(moved + wide * 2 * _missed(columns, ceilings) * columns["bytes_in"])
    return np.asarray(moved)


def _missed(columns: Columns, ceilings: Ceilings) -> FloatArray:
    """Share of a row that has left the cache before it is read again (16 rows a multiprocessor)."""
    if not ceilings.gpu:
        return np.zeros_like(columns["width"])
    held = ceilings.units * 16 * columns["width"] * 4
    return np.asarray(np.maximum(0.0, 1.0 - ceilings.cache_mb * 1e6 / np.maximum(held, 1.0)))


def _launches(family: str, columns: Columns) -> FloatArray:
    """Kernels that wait for one another: of a recurrent layer one a step and layer; none of a layer
    that computes on what another's kernel holds."""
    if family == "rnn":
        return columns["steps"]
    joined = (columns["bytes_in"] + columns["bytes_out"] == 0) & (columns["flops"] > 0)
    return np.where(joined, 0.0, 1.0)


def roofline_ms(family: str, columns: Columns, ceilings: Ceilings) -> FloatArray:
    """Time in ms at the ceilings, launches included: ``launch + max(compute, memory)``.

    Williams, Waterman, Patterson, "Roofline: An Insightful Visual Performance Model", CACM 2009.
    Recurrent layers launch and read their weights once a step; pools read their windows, and on a
    processor compute them one element at a time, before anything else goes on.

    Parameters are those of :func:`traffic_bytes`; returns shape ``(rows,)``.
    """
    compute = _operations(family, columns) / (ceilings.compute_gflops * 1e6)
    memory = traffic_bytes(family, columns, ceilings) / (ceilings.bandwidth_gbs * 1e6)
    if family == "rnn":  # weights are read again in each step
        memory = memory + columns["steps"] * columns["step_bytes"] / (ceilings.bandwidth_gbs * 4e6)
    launch = ceilings.launch_ms * _launches(family, columns)
    if family == "pool":
        if not ceilings.gpu:  # one element at a time, between loads
            scalar = _ELEMENT * columns["window_bytes"] + _RESULT * columns["bytes_out"]
            return np.asarray(launch + scalar / (4e6 * ceilings.peak_gflops) + memory)
        windows = _WINDOWS * columns["window_bytes"] / (ceilings.bandwidth_gbs * 1e6)
        memory = np.maximum(memory, windows)
    return np.asarray(launch + np.maximum(compute, memory))


def roofline_text(family: str, ceilings: Ceilings) -> str:
    """What :func:`roofline_ms` computes for a family on a device, in words."""
    launch = f"{ceilings.launch_ms * 1e3:g} us"
    rate, bandwidth = f"{ceilings.compute_gflops:g} GFLOP/s", f"{ceilings.bandwidth_gbs:g} GB/s"
    larger = f"the larger of flops at {rate} and traffic at {bandwidth}"
    if family == "rnn":
        again = f"in which each step reads its weights again at {4 * ceilings.bandwidth_gbs:g} GB/s"
        return f"{launch} a step + {larger}, {again}"
    if family == "pool" and not ceilings.gpu:
        scalar = f"{_ELEMENT:g} operations an element of a window and {_RESULT:g} a result"
        peak = f"{ceilings.peak_gflops:g} GFLOP/s"
        return f"{launch} + {scalar}, at {peak}, + traffic at {bandwidth}"
    if family == "pool":
        return f"{launch} + {larger}, or {_WINDOWS:g} of all windows' bytes at {bandwidth}"
    return f"{launch} + {larger}"


def least_ms(family: str, columns: Columns, ceilings: Ceilings) -> FloatArray:
    """Time in ms that no library can beat: operations at the peak, every tensor moved once, and the
    batch that is normalised by its own statistics read twice.

    What fits the last cache may stay there; a 3x3 convolution of stride 1 may be filtered
    minimally. Parameters are those of :func:`traffic_bytes`; returns shape ``(rows,)``.
    """
    needed = _operations(family, columns)
    if family == "conv":
        filtered = (columns["kernel_area"] == 9) & (columns["stride"] == 1)
        needed = np.where(filtered, needed / _FILTERING, needed)
    cache = ceilings.cache_mb * 1e6
    moved = np.maximum(columns["bytes_moved"] - cache, 0.0)
    if family == "norm":  # a batch's statistics are known when all of it was read
        twice = (columns["op"] == op_code("batch_norm")) & (columns["training"] > 0)
        moved = moved + np.where(twice, np.maximum(columns["bytes_in"] - cache, 0.0), 0.0)
    least = np.maximum(
        needed / (ceilings.peak_gflops * 1e6), moved / (ceilings.bandwidth_gbs * 1e6)
    )
    if family == "rnn" and ceilings.gpu:
        least = np.maximum(least, _LEAST_STEP_MS * columns["steps"])
    return np.asarray(least)


# -- What efficiencies depend on, in units that all devices share.


def _log(values: FloatArray, low: float, high: float) -> FloatArray:
    """Base-2 logarithm, kept within what matters."""
    return np.asarray(np.clip(np.log2(np.maximum(values, 1e-12)), low, high))


def _padding(columns: Columns) -> FloatArray:
    """Size of a product in whole tiles over its own."""
    rows, width = np.maximum(columns["m"], 1.0), np.maximum(columns["n"], 1.0)  # 0: an empty batch
    tall = np.ceil(rows / _TILE_ROWS) * _TILE_ROWS / rows
    return np.asarray(tall * np.ceil(width / _TILE_COLUMNS) * _TILE_COLUMNS / width)


def _waves(columns: Columns, ceilings: Ceilings) -> FloatArray:
    """Tiles over multiprocessors: how often each of them is busy."""
    tiles = np.ceil(columns["m"] / _TILE_ROWS) * np.ceil(columns["n"] / _TILE_COLUMNS)
    return np.asarray(tiles * columns["groups"] / ceilings.units)


def _tail(columns: Columns, ceilings: Ceilings) -> FloatArray:
    """What the last wave leaves idle; of many waves it hardly counts."""
    waves = _waves(columns, ceilings)
    filled = np.where((waves > 0) & (waves < 8), waves, 1.0)
    return np.asarray(np.log2(np.ceil(filled) / filled))


def _intensity(columns: Columns, ceilings: Ceilings) -> FloatArray:
    compute = columns["flops"] / ceilings.compute_gflops
    memory = np.maximum(columns["bytes_moved"] / ceilings.bandwidth_gbs, 1e-12)
    return np.asarray(compute / memory)


def _length(columns: Columns, ceilings: Ceilings) -> FloatArray:
    """The roofline in launches of a kernel: short ones do not reach their rate."""
    compute = columns["flops"] / (ceilings.compute_gflops * 1e6)
    memory = columns["bytes_moved"] / (ceilings.bandwidth_gbs * 1e6)
    return np.asarray(np.maximum(compute, memory) / _LAUNCH_MS)


#: By name: what it is, and its values. ``depth`` is there because it lowered the errors on devices
#: left out, which therefore flatter it.
FEATURES: Final[Mapping[str, tuple[str, Callable[[Columns, Ceilings], FloatArray]]]] = {
    "waves": ("log2 of tiles over multiprocessors", lambda c, d: _log(_waves(c, d), -8, 4)),
    "intensity": ("log2 of compute over memory time", lambda c, d: _log(_intensity(c, d), -4, 4)),
    "length": ("log2 of the roofline time over 4 us", lambda c, d: _log(_length(c, d), -2, 8)),
    "narrow": (
        "log2 of the narrower side of the product",
        lambda c, _: _log(np.minimum(c["m"], c["n"]), 0, 8),
    ),
    "depth": ("log2 of the length of the reduction", lambda c, _: _log(c["k"], 0, 16)),
    "padding": (
        "log2 of padded over true size of the tiles",
        lambda c, _: _log(_padding(c), 0, 13),
    ),
    "tail": ("log2 of waves begun over waves filled, of less than 8", _tail),
    "pointwise": (
        "1 of kernels 1 x 1, else 0",
        lambda c, _: np.asarray(c["kernel_area"] == 1, float),
    ),
    "filtered": (
        "1 of kernels 3 x 3 of stride 1, else 0",
        lambda c, _: np.asarray((c["kernel_area"] == 9) & (c["stride"] == 1), float),
    ),
    "strided": ("1 of strides above 1, else 0", lambda c, _: np.asarray(c["stride"] > 1, float)),
    "kernel": ("log2 of the kernel's area", lambda c, _: _log(c["kernel_area"], 0, 5)),
    "cin": ("log2 of input channels", lambda c, _: _log(c["cin"], 0, 8)),
    "cout": ("log2 of output channels", lambda c, _: _log(c["cout"], 0, 8)),
    "height": ("log2 of the output height", lambda c, _: _log(c["oh"], 0, 7)),
    "fours": (
        "log2 of the output, padded to tiles of 4 x 4, over itself",
        lambda c, _: _log(
            np.ceil(c["oh"] / 4) * np.ceil(c["ow"] / 4) * 16 / (c["oh"] * c["ow"]), 0, 4
        ),
    ),
    "width": ("log2 of the width of a row", lambda c, _: _log(c["width"], 0, 14)),
}

_PRODUCT: Final = ("waves", "intensity", "narrow", "depth", "length", "padding", "tail")
_CONVOLUTION: Final = (
    *_PRODUCT,
    *("pointwise", "filtered", "strided", "kernel", "cin", "cout", "height", "fours"),
)


def features(family: str) -> tuple[str, ...]:
    """Names of what the efficiency of this family depends on; none where it streams tensors."""
    if family in ("conv", "conv.transposed"):
        return _CONVOLUTION
    if family == "attention.decode":
        return ("length",)
    return _PRODUCT if family in GEMM_FAMILIES and family != "conv.depthwise" else ()


# -- Another batch: what enforces that a larger batch is never cheaper.

#: Columns that grow with the batch, beside operations and bytes.
_BATCH: Final[Mapping[str, tuple[str, ...]]] = {
    "conv": ("batch", "m"),
    "conv.transposed": ("batch", "m"),
    "conv.depthwise": ("batch", "m"),
    "linear": ("m",),
    "pool": ("batch", "window_bytes"),
    "softmax": ("rows",),
    "attention": (_HEADS := ("heads", "shared_heads", "batch", "cached_bytes", "scored_flops")),
    "attention.decode": _HEADS,
    "matmul.grouped": ("tokens", "row_bytes"),
    "rnn": ("batch",),
}
_GROWING: Final = ("flops", "bytes_in", "bytes_out", "bytes_workspace")


def with_batch(family: str, columns: Columns, times: FloatArray) -> dict[str, FloatArray]:
    """Columns of the same layers, each at so many times its batch.

    A linear layer's rows are its batch, and so are the products of a batched matrix product, down
    to one, then its rows. Where one operand has no batch it stays as it is.

    Parameters
    ----------
    times
        Powers of two, shape ``(rows,)``.
    """
    found = dict(columns)
    for name in (*_BATCH.get(family, ()), *_GROWING):
        if name in found:
            found[name] = found[name] * times
    if family == "matmul":
        single = 0.5 ** np.floor(np.log2(np.maximum(columns["groups"], 1.0)))
        products = np.maximum(times, np.minimum(single, 1.0))
        rows_left = times / products
        found["groups"] = columns["groups"] * products
        found["m"] = columns["m"] * rows_left
        # Without a batch the right operand stays: k n of m k + k n.
        kept = columns["n"] / np.maximum(columns["m"] + columns["n"], 1.0)
        grown = products * (rows_left + (1.0 - rows_left) * kept)
        found["bytes_in"] = columns["bytes_in"] * grown
    elif family == "matmul.grouped":
        found |= with_experts(found)
    elif family == "norm":
        by_rows = columns["op"] == op_code("layer_norm")
        found["rows"] = columns["rows"] * np.where(by_rows, times, 1.0)
        found["width"] = columns["width"] * np.where(by_rows, 1.0, times)
    elif family == "embedding":
        found["bytes_weight"] = columns["bytes_weight"] * times
    found["bytes_moved"] = found["bytes_in"] + found["bytes_out"] + found["bytes_weight"]
    return found


def batches(family: str, columns: Columns) -> FloatArray:
    """How often the batch of each layer can be halved, as a power of two: samples, or rows."""
    if family == "matmul":
        # Down to one product, then its rows.
        whole = 2.0 ** np.floor(np.log2(np.maximum(columns["groups"], 1.0)))
        return np.asarray(whole * columns["m"])
    if family == "norm":
        by_rows = columns["op"] == op_code("layer_norm")
        return np.asarray(np.where(by_rows, columns["rows"], columns["width"]))
    named = _BATCH.get(family)
    return columns[named[0]] if named else columns["bytes_out"] / 8.0
