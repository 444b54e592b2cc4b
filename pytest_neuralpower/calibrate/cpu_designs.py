"""Designs for processors: which code runs a layer, and what it makes the processor do.

What torch's CPU backend chooses by is public (``use_mkldnn`` in ATen's ``Convolution.cpp``): with
one thread a 1x1 convolution of stride 1 and batch below 16, or of a single small input, is unfolded
and multiplied; other convolutions go to oneDNN, which keeps channels in blocks as wide as a vector
and turns tensors into that layout and back. Sizes of vectors and caches are the device's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["CALL_NOISE_MS", "cpu_regimes"]

#: MB from which an allocator gets each tensor's memory from the system anew: glibc's largest
#: threshold, 32 MiB.
_FRESH_MB: Final = 33

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
    product = ["launch", "samples", "bytes_workspace", f"fresh_workspace[{_FRESH_MB}]"]
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
    terms = ["bytes_in", "bytes_out", "bytes_weight", f"fresh_out[{_FRESH_MB}]"]
    for level in ("l2_mb", "l3_mb"):
        if level in hardware:
            size = max(round(hardware[level]), 1)
            terms += [f"{of}_over[{size}]" for of in ("bytes", "io", "weight")]
    return terms
