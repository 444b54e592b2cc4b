"""The analytic model in words and numbers: how one kind of layer is priced."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Final

from tabulate import tabulate

from pytest_neuralpower.errors import PlatformError
from pytest_neuralpower.eyeriss.network import FUSED
from pytest_neuralpower.layers import KINDS

if TYPE_CHECKING:
    from pytest_neuralpower.eyeriss.platform import EyerissPlatform

__all__ = ["explain_text"]

#: Kinds of layers that the array computes (convert.works), and as what.
_MAPPED: Final = {
    "conv": "as a convolution (a transposed one: over the map with zeros put in)",
    "linear": "as a 1 x 1 convolution over the tokens of each sample",
    "matmul": "as a 1 x 1 convolution, one group a matrix, the right operand as weights",
    "attention": "as its two matrix products",
}

_EQUATIONS: Final = """\
energy = computation + input_map + output_map + weight
  computation = MACs x (1 - zero inputs) x (1 - zero weights) x cost of a MAC
  each of the others = sum over the memories of accesses x cost of an access

The accesses are those of the row-stationary mapping of least energy that fits
the array, searched for each layer and batch. A product with a zero operand is
skipped; zeros of input map and weight are not moved, those of the output map
not to DRAM."""


def explain_text(platform: EyerissPlatform, kind: str) -> str:
    """How layers of one kind are priced, and what each access costs.

    Raises
    ------
    PlatformError
        There is no such kind of layer; one line names those there are.
    """
    if kind not in KINDS:
        raise PlatformError(f"unknown kind of layer {kind!r}; known: {', '.join(KINDS)}")
    bits = platform.bits
    return "\n".join(
        [
            f"{kind} on {platform.name}",
            platform.device,
            "",
            *_how(kind),
            "",
            _cost_table(platform),
            "",
            f"in 16-bit multiply-accumulates (MACs) of {platform.costs.pj_per_mac:g} pJ, for 16 "
            "bits; linear in the bits",
            f"bits: input map {bits.input_map}, weight {bits.weight}, output map "
            f"{bits.output_map}; runtime is not modelled",
            *wrap(f"costs: {platform.costs.source}", 80, break_long_words=False),
        ]
    )


def _how(kind: str) -> list[str]:
    if kind in _MAPPED:
        return [f"priced {_MAPPED[kind]}:", "", *_EQUATIONS.splitlines()]
    if kind in FUSED:
        return [
            "priced on the way of the preceding layer's output: each value is read from",
            "and written to a register file, nothing else moves",
        ]
    if kind == "rnn":
        return [
            "has no mapping, as its steps depend on each other; priced without reuse",
            "(flagged F): each product reads both operands from the buffer, and its maps",
            "and weights cross every memory once",
        ]
    return ["computes nothing on the array; each of its values crosses every memory once"]


def _cost_table(platform: EyerissPlatform) -> str:
    costs = platform.costs
    rows = [
        (name.replace("_", " "), level.input_map, level.weight, level.output_map)
        for name in ("register_file", "array", "buffer", "dram")
        for level in (getattr(costs, name),)
    ]
    rows.append(("MAC", costs.mac, "", ""))
    headers = ("one access to", "input map", "weight", "output map")
    return tabulate(rows, headers, tablefmt="plain", floatfmt=".4g")
