"""Designs for processors: which code runs a layer, and what it makes the processor do.

What torch's CPU backend chooses by is public (``use_mkldnn`` in ATen's ``Convolution.cpp``): with
one thread a 1x1 convolution of stride 1 and batch below 16, or of a single small input, is unfolded
and multiplied; other convolutions go to oneDNN, which keeps channels in blocks as wide as a vector
and turns tensors into that layout and back. Sizes of vectors and caches are the device's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import convert

from pytest_neuralpower.estimators import (
    Boosted,
    Estimator,
    NeuralPower,
    NeuralPowerRelative,
    Physical,
    Tree,
    Utilization,
)
from pytest_neuralpower.estimators.features import GEMM_FAMILIES, range_columns, size_columns
from pytest_neuralpower.estimators.neuralpower import SIZES
from pytest_neuralpower.estimators.terms import Regime

__all__ = [
    "CALL_NOISE_MS",
    "cpu_regimes",
]


#: What Python and dispatch vary by from call to call, ms.
CALL_NOISE_MS: Final = 0.02

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


def cpu_regimes(family: str, hardware: Mapping[str, float]) -> list[dict[str, Any]]:
    """Regimes of the physical estimator on a processor.

    Parameters
    ----------
    family
        The family of layers.
    hardware
        ``vector_floats``, and ``l2_mb`` and ``l3_mb`` where they are known.
    """
    if family.startswith("conv"):
        return _convolution(family, hardware)
    if family in ("linear", "matmul"):
        terms = ["launch", "samples", *_product(hardware), *_traffic(hardware)]
        convolved: list[list[Any]] = [["convolved", ">=", 1]]
        return [
            {"name": "blocked", "when": [*convolved, ["m", ">=", 16]], "terms": terms},
            {"name": "convolution", "when": convolved, "terms": terms},
            {"name": "one row", "when": [["m", "<=", 1]], "terms": terms},
            {"name": "few rows", "when": [["m", "<=", 15]], "terms": terms},
            {"name": "rows", "when": [], "terms": terms},
        ]
    if family == "attention":
        terms = ["launch", "flops", "scored_flops", "scores", *_traffic(hardware)]
        return [{"name": "attention", "when": [], "terms": terms}]
    terms = ["launch", "flops", *_traffic(hardware)]
    if family in ("norm", "softmax"):
        terms.append("rows")
    if family in ("activation", "elementwise"):
        terms.append("bytes_new")
    regimes = [
        {"name": op, "when": [["op", "is", op]], "terms": terms} for op in _OPS.get(family, ())
    ]
    return [*regimes, {"name": "others", "when": [], "terms": terms}]


def _convolution(family: str, hardware: Mapping[str, float]) -> list[dict[str, Any]]:
    width = int(hardware["vector_floats"])
    product = ["launch", "samples", "bytes_workspace"]
    product += [*_product(hardware), *_traffic(hardware)]
    blocked = ["launch", "samples", "flops", f"padded_flops[1x{width}]"]
    blocked += [f"padded_flops[{width}x{width}]", "left", "right"]
    blocked += [f"unaligned_{name}[{width}]" for name in ("in", "out", "weight")]
    blocked += _traffic(hardware)
    others = {"name": "blocked", "when": [], "terms": blocked}
    if family != "conv":
        return [others]
    pointwise = [["kernel_area", "<=", 1], ["stride", "<=", 1]]
    if hardware.get("threads", 1) == 1:
        pointwise.append(["batch", "<=", 15])
        small = [["batch", "<=", 1], ["bytes_in", "<=", _SMALL_INPUT], ["narrow_kernel", "<=", 3]]
        regimes = [
            {"name": "small", "when": [*small, ["groups", "<=", 1]], "terms": product},
            {"name": "pointwise", "when": [*pointwise, ["groups", "<=", 1]], "terms": product},
            {"name": "grouped pointwise", "when": pointwise, "terms": product},
        ]
    else:
        regimes = []
    return [
        *regimes,
        {"name": "grouped", "when": [["groups", ">=", 2]], "terms": blocked},
        {"name": "few channels", "when": [["cin", "<=", width - 1]], "terms": blocked},
        {"name": "blocked pointwise", "when": [["kernel_area", "<=", 1]], "terms": blocked},
        others,
    ]


def _product(hardware: Mapping[str, float]) -> list[str]:
    """Terms of a plain matrix product."""
    width = int(hardware["vector_floats"])
    padded = [f"tile_flops[1x{width}]", f"tile_flops[{width}x1]"]
    return ["flops", *padded, "left", "right", "products"]


def _traffic(hardware: Mapping[str, float]) -> list[str]:
    """Terms of memory: each tensor once, and what does not fit the caches."""
    terms = ["bytes_in", "bytes_out", "bytes_weight"]
    for level in ("l2_mb", "l3_mb"):
        if level in hardware:
            size = max(round(hardware[level]), 1)
            terms += [f"{of}_over[{size}]" for of in ("bytes", "io")]
    return terms


# -- Designs: which estimators compete for a family, and what they may look at.

Makers = dict[str, Callable[[], Estimator]]

_GEMM: Final = {
    "name": "gemm",
    "when": [],
    "terms": ["launch", "tile_flops[128x32]", "bytes_in", "bytes_out", "bytes_weight"],
}
#: The same on a processor, which has no multiprocessors: vectors of 8 or 16 columns instead of
#: tiles, and the unfolded input.
_VECTOR_GEMM: Final = {
    "name": "gemm",
    "when": [],
    "terms": [
        *("launch", "flops", "tile_flops[1x8]", "tile_flops[1x16]"),
        *("bytes_in", "bytes_out", "bytes_weight", "bytes_workspace"),
    ],
}
_STREAM: Final = {"name": "stream", "when": [], "terms": ["launch", "bytes_moved", "flops"]}

#: A row wider than what its threads hold at once is read again; how wide depends on the device.
_WIDE: Final = [f"wide_bytes[1x{width}]" for width in (1024, 2048, 4096, 6144, 8192)]
_ROWS: Final = {"name": "rows", "when": [], "terms": ["launch", "bytes_moved", "rows", *_WIDE]}

#: Regimes of the physical estimator by family; every other family streams its tensors.
DEFAULT_REGIMES: Final[Mapping[str, list[dict[str, Any]]]] = {
    "conv": [_GEMM],
    "linear": [_GEMM],
    "matmul": [_GEMM],
    "attention": [
        {
            **_STREAM,
            "terms": [
                "launch",
                "scored_flops",
                "attention_flops[128x128]",
                "scores",
                "bytes_moved",
            ],
        },
    ],
    "norm": [_ROWS],
    "softmax": [_ROWS],
    "elementwise": [
        {**_STREAM, "terms": ["launch", "bytes_in", "bytes_out", "bytes_weight", "pow_bytes"]}
    ],
    "rnn": [_STREAM],
}


#: What the leaves of a tree run over: operations, memory and parameters (FastDeepIoT, section 4).
TREE_TERMS: Final = ("launch", "flops", "bytes_io", "bytes_workspace", "bytes_weight")

#: What tells how well matrix products fill the tiles of a GPU, and the vectors of a processor.
_TILE_FILLS: Final = (
    *("align(k, 64)", "align(n, 64)"),
    *("fill(m, 128)", "fill(m, 64)", "fill(n, 128)", "fill(n, 64)"),
)
_VECTOR_FILLS: Final = ("fill(n, 8)", "fill(n, 16)")


def runtime_makers(family: str, design: Mapping[str, Any], hardware: Mapping[str, float]) -> Makers:
    """Candidates for a family's runtime, the simplest first.

    Parameters
    ----------
    family
        The family of layers.
    design
        ``regimes`` and ``rescale`` of the physical estimator and ``tree_terms`` of the tree's
        leaves, where not the defaults; ``inputs`` that the boosted residual looks at beside its
        own, and its number of ``trees`` where cross-validation is not to choose it.
    hardware
        ``peak_gflops``, ``bandwidth_gbs`` and, of a GPU, ``multiprocessors``: without it matrix
        products are taken to fill vectors, not tiles. ``vector_floats`` says that it is a processor
        on which torch ran, and adds what is known of its code.
    """
    return _work_makers("runtime", family, design, hardware)


def energy_makers(family: str, design: Mapping[str, Any], hardware: Mapping[str, float]) -> Makers:
    """Candidates for a family's energy (mJ), where rows have it measured: as for its runtime, for
    both grow with what a layer does.

    Parameters are those of :func:`runtime_makers`.
    """
    return _work_makers("energy", family, design, hardware)


def power_makers(family: str, hardware: Mapping[str, float]) -> Makers:
    """Candidates for a family's power, where its rows have one, the simplest first.

    All but ``neuralpower`` need the column ``runtime_ms``.
    """

    def utilization() -> Utilization:
        return Utilization(
            peak_gflops=float(hardware["peak_gflops"]),
            bandwidth_gbs=float(hardware["bandwidth_gbs"]),
            limit_w=hardware.get("limit_w"),
        )

    rates = ("runtime_ms", "flops/runtime_ms", "bytes_moved/runtime_ms")
    makers: Makers = {
        "utilization": utilization,
        **_paper_makers(family, "power"),
        "boosted": lambda: Boosted(
            utilization(), (*_inputs(family, hardware), *rates), range_columns(family)
        ),
    }
    return makers


def _work_makers(
    quantity: str, family: str, design: Mapping[str, Any], hardware: Mapping[str, float]
) -> Makers:
    regimes = [
        convert(regime, Regime)
        for regime in design.get("regimes") or _default_regimes(family, hardware)
    ]
    multiprocessors = int(hardware.get("multiprocessors", 1))

    def physical() -> Physical:
        return Physical(
            regimes,
            multiprocessors=multiprocessors,
            peak_gflops=float(hardware["peak_gflops"]),
            bandwidth_gbs=float(hardware["bandwidth_gbs"]),
            rescale=bool(design.get("rescale", True)),
            merge="vector_floats" in hardware,
            noise_ms=CALL_NOISE_MS if "vector_floats" in hardware else None,
        )

    return {
        "physical": physical,
        **_paper_makers(family, quantity),
        "tree": lambda: Tree(
            size_columns(family),
            tuple(design.get("tree_terms", TREE_TERMS)),
            multiprocessors=multiprocessors,
        ),
        "boosted": lambda: Boosted(
            physical(),
            (*_inputs(family, hardware), *design.get("inputs", ())),
            range_columns(family),
            trees=design.get("trees"),
        ),
    }


def _default_regimes(family: str, hardware: Mapping[str, float]) -> list[dict[str, Any]]:
    if "vector_floats" in hardware:
        return cpu_regimes(family, hardware)
    found = DEFAULT_REGIMES.get(family, [_STREAM])
    return [_VECTOR_GEMM] if found == [_GEMM] and "multiprocessors" not in hardware else found


def _paper_makers(family: str, quantity: str) -> Makers:
    if family not in SIZES:
        return {}
    return {
        "neuralpower": lambda: NeuralPower(family, quantity),
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
