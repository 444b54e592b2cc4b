"""A platform's estimators as equations that a person can read, check and argue with."""

from __future__ import annotations

import difflib
import json
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Final

from tabulate import tabulate

from pytest_neuralpower.errors import PlatformError
from pytest_neuralpower.estimators.features import FAMILIES, STAND_INS
from pytest_neuralpower.estimators.terms import is_term, meaning
from pytest_neuralpower.estimators.tree import Leaf, Node
from pytest_neuralpower.eyeriss.energy import FUSED
from pytest_neuralpower.layers import KINDS

if TYPE_CHECKING:
    from pytest_neuralpower.estimators import (
        Boosted,
        Estimator,
        NeuralPower,
        PerEnergy,
        Physical,
        Saturating,
        Shares,
        Tree,
    )
    from pytest_neuralpower.platform.analytic import EyerissPlatform
    from pytest_neuralpower.platform.price import FamilyModel, Platform

__all__ = [
    "explain_analytic_text",
]


#: What each quantity is called on the left of its equation.
_LEFT: Final = {"runtime": "runtime_ms", "power": "power_w", "energy": "energy_mj"}

#: Where a platform keeps the held-out scores of each quantity.
_SCORES: Final = {"runtime": "runtime", "power": "layer_power", "energy": "layer_energy"}

_SHOWN_INPUTS: Final = 6

_WIDTH: Final = 100


def explain_text(platform: Platform, family_name: str) -> str:
    """The fitted equations of one family of layers, with their units.

    Parameters
    ----------
    platform
        Any platform.
    family_name
        A family of layers (``conv``, ``linear``, ...), with estimators there or without.

    Raises
    ------
    PlatformError
        There is no such family; one line names those there are.
    """
    lines = [f"{family_name} on {platform.name}: {platform.device}, {platform.dtype}", ""]
    model = platform.families.get(family_name)
    estimators: dict[str, Estimator] = {}
    if model is not None:
        estimators |= model.estimators
    elif family_name in FAMILIES:
        lines += [*_fallback(platform, family_name), ""]
    else:
        raise PlatformError(_unknown(platform, family_name))
    if platform.power is not None:
        estimators.setdefault("power", platform.power)
    for quantity, estimator in estimators.items():
        lines += [f"{_LEFT.get(quantity, quantity)}, by {estimator.name}"]
        lines[-1] += (
            _known_power(platform)
            if estimator is platform.power
            else _held_out(platform.accuracy, quantity, family_name)
        )
        lines += _indented(_equations(estimator, _LEFT.get(quantity, quantity)))
        if quantity == "runtime" and model is not None:
            lines += _indented(_surcharges(model))
        lines.append("")
    text = [*lines, *_legend(lines)]
    return "\n".join(part for line in text for part in _wrapped(line)).rstrip()


def _wrapped(line: str) -> list[str]:
    """A line within the width; what is left of it goes on below, further in."""
    word = re.match(r" *\S+ {2,}(?=\S)", line)  # a term and its meaning
    inner = len(word[0]) if word else len(line) - len(line.lstrip()) + 4
    return textwrap.wrap(
        line, _WIDTH, subsequent_indent=" " * inner, break_long_words=False, break_on_hyphens=False
    ) or [""]


def _unknown(platform: Platform, name: str) -> str:
    """What to say to a kind of layer that there is not."""
    plain = re.sub(r"[1-3]d$", "", name.lower())
    close = difflib.get_close_matches(plain, FAMILIES, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return (
        f"unknown kind of layer {name!r}{hint}; {platform.name} has estimators of "
        f"{', '.join(platform.families) or 'none'}, and prices without one "
        f"{', '.join(each for each in FAMILIES if each not in platform.families)}"
    )


def _fallback(platform: Platform, family_name: str) -> list[str]:
    """How a family without an estimator is priced: by that of a like one, or by its traffic."""
    like = STAND_INS.get(family_name, "")
    if like in platform.families:
        return [f"priced by the equations of {like}, and flagged as extrapolated: explain {like}"]
    rates = platform.fallback
    pad = " " * len("runtime_ms")
    return [
        f"runtime_ms, by fallback: {platform.name} has no estimator of {family_name}, flagged F",
        "  runtime_ms = the largest of",
        f"  {pad}   {1 / (rates.bandwidth_gbs * 1e6):.4g} * bytes_moved   "
        f"({rates.bandwidth_gbs:g} GB/s)",
        f"  {pad}   {1 / (rates.gflops * 1e6):.4g} * flops   ({rates.gflops:g} GFLOP/s)",
        f"  {pad}   {rates.floor_ms:.4g}   (the shortest layer that was measured)",
    ]


def _known_power(platform: Platform) -> str:
    """How the power of all layers is known, and how wrong it is where that is known."""
    tier = platform.tiers.get("power")
    if tier is None:
        return ""
    found = platform.accuracy.get("power") or {}
    if tier == "transferred" and "transferred" in found:
        return (
            f" (transferred from {found['transferred_from']}; off by "
            f"{found['transferred']['rmspe']:.1f}% on networks of {found['judged_on']}, "
            f"not known of {platform.name})"
        )
    if "leave_one_network_out" in found:
        error = found["leave_one_network_out"]["rmspe"]
        return f" ({tier}; off by {error:.1f}% on networks left out)"
    if "held_out_rows" in found:
        return f" ({tier}; off by {found['held_out_rows']['mape']:.1f}% on rows held out)"
    return f" ({tier})"


#: Sizes that conditions may name and that do not explain themselves.
_SIZES: Final = {
    "m": "rows of the matrix product (of a convolution: batch x output positions)",
    "n": "columns of the matrix product (output channels of one group)",
    "k": "depth of the matrix product (input channels of one group x kernel)",
    "cin": "input channels",
    "cout": "output channels",
    "h": "height of the input",
    "oh": "height of the output",
    "ow": "width of the output",
    "kernel_area": "height x width of the kernel",
    "stride": "vertical x horizontal stride",
}


def _held_out(accuracy: Mapping[str, Any], quantity: str, family_name: str) -> str:
    """What the chosen estimator and the others scored, where it is known."""
    found = accuracy.get(_SCORES.get(quantity, quantity), {}).get(family_name)
    if found is None:
        return ""
    scores = {
        name: f"{score['mape']:.1f}%" if "mape" in score else "refused"
        for name, score in found["held_out"].items()
    }
    chosen = scores.pop(found["chosen"])
    others = ", ".join(f"{name} {score}" for name, score in scores.items())
    return f" (off by {chosen} on held-out shapes{'; ' if others else ''}{others})"


def _equations(estimator: Estimator, left: str) -> list[str]:
    write = _WRITERS.get(estimator.name)
    if write is not None:
        return write(estimator, left)
    # An estimator without an equation of its own: what it stores.
    return json.dumps(estimator.to_json(), indent=2).splitlines()


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _sum(left: str, summands: Iterable[tuple[float, str]]) -> list[str]:
    """``left = a * x + b * y``, one summand a line; a coefficient of nothing stands alone."""
    shown = [
        f"{coefficient:.4g} * {name}" if name else f"{coefficient:.4g}"
        for coefficient, name in summands
    ] or ["0"]
    pad = " " * len(left)
    return [f"{pad if number else left} {'+' if number else '='} {each}"
            for number, each in enumerate(shown)]  # fmt: skip


def _in_units(rates: Mapping[str, float], scale: float = 1.0) -> list[tuple[float, str]]:
    """Rates per single operation or byte, the constant first."""
    found = [
        (rate * scale * meaning(term).factor, "" if term == "launch" else term)
        for term, rate in rates.items()
    ]
    return sorted(found, key=lambda each: bool(each[1]))


def _physical(estimator: Physical, left: str) -> list[str]:
    lines = []
    several = len(estimator.regimes) > 1
    # mJ over ms are watts.
    times = "W times the roofline's time" if left == "energy_mj" else "times the roofline"
    for number, (regime, fitted) in enumerate(
        zip(estimator.regimes, estimator.fitted_, strict=True)
    ):
        body = _sum(left, _in_units(fitted.rates, fitted.scale))
        body.append(f"kept between {fitted.low:.3g} and {fitted.high:.3g} {times}")
        if not several:
            return [*body, _roofline(estimator)]
        when = " and ".join(map(str, regime.when))
        word = ("else if" if number else "if") if when else "else"
        lines += [" ".join(filter(None, (word, when, f"({regime.name}):"))), *_indented(body)]
    return [*lines, _roofline(estimator)]


def _roofline(estimator: Physical) -> str:
    return (
        f"the roofline: flops at {estimator.peak_gflops:g} GFLOP/s, then bytes_moved at "
        f"{estimator.bandwidth_gbs:g} GB/s"
    )


def _shares(estimator: Shares, left: str) -> list[str]:
    watts = estimator.watts_
    named = [
        (watts["base_w"], ""),
        (watts["compute_w"], "compute_share"),
        (watts["bandwidth_w"], "bandwidth_share"),
    ]
    lines = _sum(left, [each for each in named if each[0] > 0])
    if estimator.limit_w is not None:
        lines.append(f"at most {estimator.limit_w:g}, the board's limit")
    return [*lines, *_what_shares_are(estimator)]


def _what_shares_are(estimator: Shares | Saturating) -> list[str]:
    return [
        f"compute_share: flops / runtime over {estimator.peak_gflops:g} GFLOP/s, at most 1",
        f"bandwidth_share: bytes_moved / runtime over {estimator.bandwidth_gbs:g} GB/s, at most 1",
    ]


def _neuralpower(estimator: NeuralPower, left: str) -> list[str]:
    # Regressors carry the place of each size, or a number and a colon, to tell them apart.
    named = [
        (weight, re.sub(r"\.\d+", "", name.split(":")[-1]).replace("*", " * "))
        for name, weight in estimator.coefficients_.items()
    ]
    lines = _sum(left, [(estimator.intercept_, ""), *named])
    if estimator.floor is not None:
        lines.append(f"at least {estimator.floor:g}")
    return lines


def _tree(estimator: Tree, left: str) -> list[str]:
    return _node(estimator.root_, left)


def _node(node: Node, left: str) -> list[str]:
    if isinstance(node, Leaf):
        lines = _sum(left, _in_units(node.rates))
        lines[-1] += f"   ({node.rows} rows)"
        return lines
    return [
        f"if {node.condition}:",
        *_indented(_node(node.yes, left)),
        "else:",
        *_indented(_node(node.no, left)),
    ]


def _boosted(estimator: Boosted, left: str) -> list[str]:
    lines = _equations(estimator.base_, left)
    count = len(estimator.trees_)
    if not count:
        return [*lines, "no residual: cross-validation chose to add no tree"]
    asked = Counter(
        estimator.inputs[each] for each in estimator.trees_.inputs[estimator.trees_.used].tolist()
    )
    most = ", ".join(name for name, _ in asked.most_common(_SHOWN_INPUTS))
    ranges = ", ".join(
        f"{name} {low:g}..{high:g}" for name, (low, high) in estimator.ranges_.items()
    )
    return [
        *lines,
        f"times exp(residual), a sum of {count} trees of depth {estimator.trees_.depth}, which "
        f"moves it by {estimator.spread_:.0%} (standard deviation)",
        f"the residual asks most about {most}",
        f"and fades beyond {ranges}: halved one doubling away, a sixteenth two away",
    ]


def _saturating(estimator: Saturating, left: str) -> list[str]:
    rates = estimator.rates_
    span = estimator.limit_w - estimator.idle_w
    return [
        f"{left} = {estimator.idle_w:.4g} + {span:.4g} * (1 - exp(-load))",
        *_sum(
            "load",
            [
                (rates["busy"], ""),
                (rates["compute"], "compute_share"),
                (rates["bandwidth"], "bandwidth_share"),
            ],
        ),
        *_what_shares_are(estimator),
    ]


def _per_energy(estimator: PerEnergy, left: str) -> list[str]:
    return [
        f"{left} = energy_mj / runtime_ms, from {estimator.low_:.4g} to {estimator.high_:.4g}",
        f"energy_mj, by {estimator.energy.name}",
        *_indented(_equations(estimator.energy, "energy_mj")),
    ]


#: How each estimator is written, by its name.
_WRITERS: Final[Mapping[str, Callable[[Any, str], list[str]]]] = {
    "physical": _physical,
    "shares": _shares,
    "saturating": _saturating,
    "neuralpower": _neuralpower,
    "neuralpower-relative": _neuralpower,
    "tree": _tree,
    "boosted": _boosted,
    "per-energy": _per_energy,
}


def _surcharges(model: FamilyModel) -> list[str]:
    if not model.surcharges:
        return []
    return ["and what the framework adds:", *_sum("surcharge", _in_units(model.surcharges))]


def _legend(lines: Sequence[str]) -> list[str]:
    """What the terms and sizes mean that the equations name."""
    text = "\n".join(lines)
    terms = dict.fromkeys(re.findall(r"\* ([a-z_]+(?:\[[\dx]+\])?)", text))
    found = {
        term: f"{each.text}, in {each.unit}" if each.unit else each.text
        for term, each in ((term, meaning(term)) for term in terms if is_term(term))
    }
    conditions = " ".join(re.findall(r"^ *(?:else )?if (.*)$", text, re.MULTILINE))
    found |= {size: says for size, says in _SIZES.items() if re.search(rf"\b{size}\b", conditions)}
    width = max(map(len, found), default=0)
    return ["where", *(f"  {word:{width}}  {says}" for word, says in found.items())] * bool(found)


# -- The analytic model in words and numbers: how one kind of layer is priced.

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


def explain_analytic_text(platform: EyerissPlatform, kind: str) -> str:
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
