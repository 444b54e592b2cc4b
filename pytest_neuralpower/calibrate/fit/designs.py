"""Designs: which estimators compete for a family of layers, and what they may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

from pytest_neuralpower.estimators import (
    Boosted,
    Estimator,
    NeuralPowerPolynomial,
    NeuralPowerRelative,
    Physical,
    Sparse,
    Tree,
    Utilization,
)
from pytest_neuralpower.estimators.boosted import DEPTH
from pytest_neuralpower.estimators.features import GEMM_FAMILIES, range_columns, size_columns
from pytest_neuralpower.estimators.neuralpower import SIZES
from pytest_neuralpower.estimators.physics import Ceilings, features
from pytest_neuralpower.estimators.terms import Regime

#: Estimators that can compete for a runtime: convolutions have them all.
Candidate = Literal[
    "neuralpower-bounded", "physical", "neuralpower", "neuralpower-relative", "tree", "boosted"
]

#: Unfitted estimators by name, the simplest first.
Makers = Mapping[str, Callable[[], Estimator]]

#: What the leaves of a tree run over: operations, memory and parameters (FastDeepIoT, section 4).
TREE_TERMS: Final = ("launch", "flops", "bytes_io", "bytes_workspace", "bytes_weight")


class Design(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a recipe says of the estimators of one family.

    Attributes
    ----------
    regimes, rescale
        Of the physical estimator: ``name``, ``terms`` and ``when`` of each regime, the defaults
        where there are none; whether its rates are scaled to the sum of the rows.
    tree_terms
        Of the tree's leaves.
    inputs, trees, depth, least_rows
        What the boosted residual looks at as well as its own inputs, its number of trees, their
        depth and the fewest rows of a leaf; None where cross-validation chooses it.
    candidates
        Estimators that compete; empty for all.
    learn
        ``energy`` where power is learnt as energy alone; ``utilization`` where the rows that have
        power, not all, tell how it follows how busy the device is.
    """

    regimes: tuple[Regime, ...] = ()
    rescale: bool = True
    tree_terms: tuple[str, ...] = TREE_TERMS
    inputs: tuple[str, ...] = ()
    trees: int | None = None
    depth: int = DEPTH
    least_rows: int | None = None
    candidates: tuple[Candidate, ...] = ()
    learn: Literal["energy", "utilization"] | None = None


def _regime(name: str, terms: tuple[str, ...], *when: tuple[str, str, float | str]) -> Regime:
    return msgspec.convert({"name": name, "terms": terms, "when": when}, Regime)


_GEMM: Final = _regime(
    "gemm", ("launch", "tile_flops[128x32]", "bytes_in", "bytes_out", "bytes_weight")
)
#: The same on a processor, which has no multiprocessors: vectors of 8 or 16 columns instead of
#: tiles, and the unfolded input.
_VECTOR_GEMM: Final = _regime(
    "gemm",
    (
        *("launch", "flops", "tile_flops[1x8]", "tile_flops[1x16]"),
        *("bytes_in", "bytes_out", "bytes_weight", "bytes_workspace"),
    ),
)
_STREAM: Final = _regime("stream", ("launch", "bytes_moved", "flops"))

#: A row wider than what its threads hold at once is read again; how wide depends on the device.
_WIDE: Final = tuple(f"wide_bytes[1x{width}]" for width in (1024, 2048, 4096, 6144, 8192))
_ROWS: Final = _regime("rows", ("launch", "bytes_moved", "rows", *_WIDE))

#: Regime of the physical estimator by family; every other family streams its tensors.
DEFAULT_REGIMES: Final[Mapping[str, Regime]] = {
    "conv": _GEMM,
    "linear": _GEMM,
    "matmul": _GEMM,
    "matmul.grouped": _GEMM,
    "attention": _regime(
        "stream", ("launch", "scored_flops", "attention_flops[128x128]", "scores", "bytes_moved")
    ),
    "attention.decode": _regime(
        "decode", ("launch", "cached[128x64]", "bytes_moved", "bytes_out", "scored_flops")
    ),
    "norm": _ROWS,
    "softmax": _ROWS,
    "elementwise": _regime(
        "stream", ("launch", "bytes_in", "bytes_out", "bytes_weight", "pow_bytes")
    ),
}

#: What tells how well matrix products fill the tiles of a GPU, and the vectors of a processor.
_TILE_FILLS: Final = (
    *("align(k, 64)", "align(n, 64)"),
    *("fill(m, 128)", "fill(m, 64)", "fill(n, 128)", "fill(n, 64)"),
)
_VECTOR_FILLS: Final = ("fill(n, 8)", "fill(n, 16)")

#: What Python and dispatch vary by from call to call, ms.
CALL_NOISE_MS: Final = 0.02


def runtime_makers(
    family: str,
    design: Design,
    hardware: Mapping[str, float],
    *,
    quantity: Literal["runtime", "energy"] = "runtime",
) -> Makers:
    """Candidates for a family's runtime, or for its energy (mJ) where rows have it measured: both
    grow with what a layer does.

    Parameters
    ----------
    family
        The family of layers.
    design
        Where not the defaults.
    hardware
        ``peak_gflops``, ``bandwidth_gbs`` and, of a GPU, ``multiprocessors``: without it matrix
        products are taken to fill vectors, not tiles. ``vector_floats`` says that it is a processor
        on which torch ran, and adds what is known of its code.
    quantity
        What is predicted.
    """
    regimes = design.regimes or _default_regimes(family, hardware)
    trees = design.trees
    if trees is not None and quantity == "energy":
        trees //= 2  # readings of power are rough: more tell little
    multiprocessors = int(hardware.get("multiprocessors", 1))
    on_processor = "vector_floats" in hardware

    def physical() -> Physical:
        return Physical(
            list(regimes),
            multiprocessors=multiprocessors,
            peak_gflops=float(hardware["peak_gflops"]),
            bandwidth_gbs=float(hardware["bandwidth_gbs"]),
            rescale=design.rescale,
            merge=on_processor,
            noise_ms=CALL_NOISE_MS if on_processor else None,
        )

    bounded = {Sparse.name: lambda: Sparse(features(family) or ("length",), Ceilings.of(hardware))}
    return {
        **(bounded if quantity == "runtime" else {}),
        "physical": physical,
        **_paper_makers(family, quantity),
        "tree": lambda: Tree(
            size_columns(family), design.tree_terms, multiprocessors=multiprocessors
        ),
        "boosted": lambda: Boosted(
            physical(),
            (*_inputs(family, hardware), *design.inputs),
            range_columns(family),
            trees=trees,
            least_rows=design.least_rows,
            depth=design.depth,
        ),
    }


def power_makers(family: str, hardware: Mapping[str, float]) -> Makers:
    """Candidates for a family's power, where its rows have one, the simplest first.

    All but ``neuralpower`` need the column ``runtime_ms``.
    """
    rates = ("runtime_ms", "flops/runtime_ms", "bytes_moved/runtime_ms")
    return {
        "utilization": lambda: utilization_model(hardware),
        **_paper_makers(family, "power"),
        "boosted": lambda: Boosted(
            utilization_model(hardware), (*_inputs(family, hardware), *rates), range_columns(family)
        ),
    }


def utilization_model(hardware: Mapping[str, float], **options: Any) -> Utilization:
    """An unfitted model of power by how busy the device is, at most ``limit_w`` where it is known;
    ``options`` are further arguments of the model."""
    limit = hardware.get("limit_w")
    return Utilization(
        peak_gflops=float(hardware["peak_gflops"]),
        bandwidth_gbs=float(hardware["bandwidth_gbs"]),
        limit_w=None if limit is None else float(limit),
        **options,
    )


def _default_regimes(family: str, hardware: Mapping[str, float]) -> list[Regime]:
    if "vector_floats" in hardware:
        return cpu_regimes(family, hardware)
    regime = DEFAULT_REGIMES.get(family, _STREAM)
    return [_VECTOR_GEMM if regime is _GEMM and "multiprocessors" not in hardware else regime]


def _paper_makers(family: str, quantity: str) -> Makers:
    if family not in SIZES:
        return {}
    return {
        "neuralpower": lambda: NeuralPowerPolynomial(family, quantity),
        "neuralpower-relative": lambda: NeuralPowerRelative(family, quantity),
    }


def _inputs(family: str, hardware: Mapping[str, float]) -> tuple[str, ...]:
    """What the boosted residual looks at."""
    sizes = dict.fromkeys((*size_columns(family), "flops", "bytes_moved", "flops/bytes_moved"))
    if family not in GEMM_FAMILIES:
        return tuple(sizes)
    if "multiprocessors" not in hardware:
        return (*sizes, *_VECTOR_FILLS)
    at_once = int(hardware["multiprocessors"])
    # Winograd's minimal filtering computes outputs in tiles of 2 x 2 or 4 x 4.
    winograd = ("fill(oh, 2)", "fill(oh, 4)") if family == "conv" else ()
    waves = [f"wave_fill({tile}, {at_once})" for tile in ("128x128", "128x64")]
    return (*sizes, *_TILE_FILLS, *winograd, *waves)


# -- Processors: which code runs a layer, and what it makes the processor do.
#
# What torch's CPU backend chooses by is public (``use_mkldnn`` in ATen's ``Convolution.cpp``): with
# one thread a 1x1 convolution of stride 1 and batch below 16, or of a single small input, is
# unfolded and multiplied; other convolutions go to oneDNN, which keeps channels in blocks as wide
# as a vector and turns tensors into that layout and back. Sizes of vectors and caches are the
# device's own.

#: Bytes of a single float32 input up to which torch multiplies by itself.
_SMALL_INPUT: Final = 20_480 * 4

#: Operations with code of their own, where enough of them were measured.
_OPS: Final[Mapping[str, tuple[str, ...]]] = {
    "activation": (
        *("mish", "elu", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid"),
        *("leaky_relu", "prelu", "relu6", "relu"),
    ),
    "norm": ("local_response_norm", "layer_norm", "group_norm", "instance_norm", "batch_norm"),
    "pool": ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"),
    "elementwise": ("pow", "div", "mul", "add"),
    "memory": ("interpolate", "arange", "contiguous", "reshape", "cat"),
}


def cpu_regimes(family: str, hardware: Mapping[str, float]) -> list[Regime]:
    """Regimes of the physical estimator on a processor.

    Parameters
    ----------
    family
        The family of layers.
    hardware
        ``vector_floats``, and ``l2_mb`` and ``l3_mb`` where they are known.
    """
    width = int(hardware["vector_floats"])
    # Memory: each tensor once, and what does not fit the caches.
    traffic = ["bytes_in", "bytes_out", "bytes_weight"]
    for level in ("l2_mb", "l3_mb"):
        if level in hardware:
            size = max(round(hardware[level]), 1)
            traffic += [f"{of}_over[{size}]" for of in ("bytes", "io")]
    # A plain matrix product.
    product = ["flops", f"tile_flops[1x{width}]", f"tile_flops[{width}x1]"]
    product += ["left", "right", "products"]
    if family.startswith("conv"):
        return _convolution(family, hardware, product, traffic)
    if family in ("linear", "matmul"):
        products = ("launch", "samples", *product, *traffic)
        return [
            _regime("blocked", products, ("convolved", ">=", 1), ("m", ">=", 16)),
            _regime("convolution", products, ("convolved", ">=", 1)),
            _regime("one row", products, ("m", "<=", 1)),
            _regime("few rows", products, ("m", "<=", 15)),
            _regime("rows", products),
        ]
    if family.startswith("attention"):
        return [_regime("attention", ("launch", "flops", "scored_flops", "scores", *traffic))]
    terms: tuple[str, ...] = ("launch", "flops", *traffic)
    if family in ("norm", "softmax"):
        terms += ("rows",)
    if family in ("activation", "elementwise"):
        terms += ("bytes_new",)
    regimes = [_regime(op, terms, ("op", "is", op)) for op in _OPS.get(family, ())]
    return [*regimes, _regime("others", terms)]


def _convolution(
    family: str, hardware: Mapping[str, float], product: list[str], traffic: list[str]
) -> list[Regime]:
    width = int(hardware["vector_floats"])
    unfolded = ("launch", "samples", "bytes_workspace", *product, *traffic)
    blocked = (
        *("launch", "samples", "flops", f"padded_flops[1x{width}]"),
        *(f"padded_flops[{width}x{width}]", "left", "right"),
        *(f"unaligned_{name}[{width}]" for name in ("in", "out", "weight")),
        *traffic,
    )
    others = _regime("blocked", blocked)
    if family != "conv":
        return [others]
    regimes = []
    if hardware.get("threads", 1) == 1:
        pointwise = (("kernel_area", "<=", 1), ("stride", "<=", 1), ("batch", "<=", 15))
        small = (("batch", "<=", 1), ("bytes_in", "<=", _SMALL_INPUT), ("narrow_kernel", "<=", 3))
        regimes = [
            _regime("small", unfolded, *small, ("groups", "<=", 1)),
            _regime("pointwise", unfolded, *pointwise, ("groups", "<=", 1)),
            _regime("grouped pointwise", unfolded, *pointwise),
        ]
    return [
        *regimes,
        _regime("grouped", blocked, ("groups", ">=", 2)),
        _regime("few channels", blocked, ("cin", "<=", width - 1)),
        _regime("blocked pointwise", blocked, ("kernel_area", "<=", 1)),
        others,
    ]
