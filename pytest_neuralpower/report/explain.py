"""A platform's estimators as equations that a person can read, check and argue with."""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from tabulate import tabulate

from pytest_neuralpower.estimators.physics import FEATURES, roofline_text
from pytest_neuralpower.estimators.terms import is_term, meaning

if TYPE_CHECKING:
    from pytest_neuralpower.estimators import (
        Boosted,
        Bounded,
        Estimator,
        NeuralPowerPolynomial,
        Physical,
        Sparse,
        Utilization,
    )
    from pytest_neuralpower.estimators.tree import Node
    from pytest_neuralpower.platform.protocol import Platform

#: What each quantity is called on the left of its equation.
_LEFT: Final = {"runtime": "runtime_ms", "power": "power_w", "energy": "energy_mj"}

_SHOWN_INPUTS: Final = 6

_WIDTH: Final = 100


def explain_text(platform: Platform, kind: str) -> str:
    """How a platform prices one kind of layer: fitted equations, or the costs of each access.

    Parameters
    ----------
    platform
        Any platform.
    kind
        A kind or family of layers (``conv``, ``linear``, ...), with estimators there or without.

    Raises
    ------
    PlatformError
        There is no such kind; one line names those there are.
    """
    found = platform.explain(kind)
    lines = [*found.title, ""]
    if found.text:
        lines += [*found.text, ""]
    title = ""
    for each in found.equations:
        left = _LEFT.get(each.quantity, each.quantity)
        if each.title != title:
            title = each.title
            lines.append(f"{title}:")
        lines += [f"{left}, by {each.estimator.label}" + (each.known and f" ({each.known})")]
        lines += _indented(_equations(each.estimator, left))
        if each.overheads:
            lines.append("  and what the framework adds:")
            lines += _indented(_sum("overhead", _in_units(each.overheads)))
        if each.power_range_w is not None:
            low, high = each.power_range_w
            how = "power_w" if each.quantity == "power" else "power_w = energy_mj / runtime_ms"
            lines.append(f"  {how}, from {low:.4g} to {high:.4g}")
        lines.append("")
    if found.costs:
        headers = ("one access to", "input map", "weight", "output map")
        lines += [tabulate(found.costs, headers, tablefmt="plain", floatfmt=".4g"), ""]
    lines += found.remarks
    text = [*"\n".join(lines).split("\n"), *_legend(lines)]
    return "\n".join(part for line in text for part in _wrapped(line)).rstrip()


def _wrapped(line: str) -> list[str]:
    """A line within the width; what is left of it goes on below, further in."""
    word = re.match(r" *\S+ {2,}(?=\S)", line)  # a term and its meaning
    inner = len(word[0]) if word else len(line) - len(line.lstrip()) + 4
    return textwrap.wrap(
        line, _WIDTH, subsequent_indent=" " * inner, break_long_words=False, break_on_hyphens=False
    ) or [""]


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
    for number, regime in enumerate(estimator.regimes):
        body = _sum(left, _in_units(regime.rates, regime.scale))
        low, high = regime.time_over_roofline
        body.append(f"kept between {low:.3g} and {high:.3g} {times}")
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


def _utilization(estimator: Utilization, left: str) -> list[str]:
    load = estimator.load_
    named = [
        (load["base"], ""),
        (load["compute"], "compute_utilization"),
        (load["bandwidth"], "bandwidth_utilization"),
    ]
    ceilings = [
        f"compute_utilization: flops / runtime over {estimator.peak_gflops:g} GFLOP/s, at most 1",
        f"bandwidth_utilization: bytes_moved / runtime over {estimator.bandwidth_gbs:g} GB/s, "
        "at most 1",
    ]
    limit = estimator.limit_w
    if estimator.idle_w is not None and limit is not None:
        span = limit - estimator.idle_w
        saturating = f"{left} = {estimator.idle_w:.4g} + {span:.4g} * (1 - exp(-load))"
        return [saturating, *_sum("load", named), *ceilings]
    lines = _sum(left, [each for each in named if each[0] > 0])
    if limit is not None:
        lines.append(f"at most {limit:g}, the board's limit")
    return [*lines, *ceilings]


def _neuralpower(estimator: NeuralPowerPolynomial, left: str) -> list[str]:
    # Regressors carry the place of each size, or a number and a colon, to tell them apart.
    named = [
        (weight, re.sub(r"\.\d+", "", name.split(":")[-1]).replace("*", " * "))
        for name, weight in estimator.coefficients_.items()
    ]
    lines = _sum(left, [(estimator.intercept_, ""), *named])
    if estimator.floor is not None:
        lines.append(f"at least {estimator.floor:g}")
    return lines


def _node(node: Node, left: str) -> list[str]:
    if node.yes is None or node.no is None:
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
    lines = _equations(estimator.base, left)
    count = len(estimator.trees_)
    if not count:
        return [*lines, "no residual: cross-validation chose to add no tree"]
    asked = Counter(
        estimator.inputs[each] for each in estimator.trees_.inputs[estimator.trees_.used].tolist()
    )
    most = ", ".join(name for name, _ in asked.most_common(_SHOWN_INPUTS))
    ranges = ", ".join(
        f"{name} {low:g}..{high:g}" for name, (low, high) in estimator.calibrated_.items()
    )
    return [
        *lines,
        f"times exp(residual), a sum of {count} trees of depth {estimator.trees_.depth}, which "
        f"moves it by {estimator.spread_:.0%} (standard deviation)",
        f"the residual asks most about {most}",
        f"and fades beyond {ranges}: halved one doubling away, a sixteenth two away",
    ]


def _bounded(estimator: Bounded, left: str) -> list[str]:
    low, high = (float(np.exp(edge)) for edge in estimator.bounds_)
    middle = float(np.exp(estimator.center_))
    prior = estimator.prior
    lines = [] if estimator.inner is None else _equations(estimator.inner, left)
    if estimator.inner is not None:
        lines.append(
            f"kept between {low:.3g} and {high:.3g} times the prior, and fading to {middle:.3g} "
            "times it outside the calibrated ranges"
        )
    return [
        *lines,
        f"the prior: as on {prior.witnesses}",
        *_sparse(prior.factor, "prior_ms"),
        f"the roofline: {roofline_text(estimator.family, estimator.ceilings)}",
        "never below its operations at the peak or its bytes at the full bandwidth, nor below what "
        "a smaller batch takes",
    ]


def _sparse(estimator: Sparse, left: str) -> list[str]:
    named = [(weight, term.replace("*", " * ")) for term, weight in estimator.coefficients_.items()]
    if not named:
        return [f"{left} = {np.exp(estimator.intercept_):.4g} * {estimator.of}"]
    low, high = (float(np.exp(edge)) for edge in estimator.bounds_)
    return [
        f"{left} = {estimator.of} * exp(factor), between {low:.3g} and {high:.3g} times",
        *_sum("factor", [(estimator.intercept_, ""), *named]),
    ]


#: How each estimator is written, by its name.
_WRITERS: Final[Mapping[str, Callable[[Any, str], list[str]]]] = {
    "physical": _physical,
    "utilization": _utilization,
    "neuralpower": _neuralpower,
    "neuralpower-relative": _neuralpower,
    "tree": lambda estimator, left: _node(estimator.root_, left),
    "boosted": _boosted,
    "bounded": _bounded,
    "neuralpower-bounded": _sparse,
}


#: The polynomial in the exponent of a factor, one summand a line.
_FACTOR: Final = re.compile(r"^ *factor = .*(?:\n +\+ .*)*", re.MULTILINE)


def _legend(lines: Sequence[str]) -> list[str]:
    """What the terms and sizes mean that the equations name."""
    text = "\n".join(lines)
    factors = dict.fromkeys(re.findall(r"\* ([a-z]+)", "\n".join(_FACTOR.findall(text))))
    text = _FACTOR.sub("", text)
    terms = dict.fromkeys(re.findall(r"\* ([a-z_]+(?:\[[\dx]+\])?)", text))
    found = {
        term: f"{each.text}, in {each.unit}" if each.unit else each.text
        for term, each in ((term, meaning(term)) for term in terms if is_term(term))
    }
    conditions = " ".join(re.findall(r"^ *(?:else )?if (.*)$", text, re.MULTILINE))
    found |= {size: says for size, says in _SIZES.items() if re.search(rf"\b{size}\b", conditions)}
    inputs = {name: FEATURES[name][0] for name in factors}
    known, logarithms = _meanings("where", found), _meanings("where, in a factor,", inputs)
    return [*known, *[""] * bool(known and logarithms), *logarithms]


def _meanings(title: str, words: Mapping[str, str]) -> list[str]:
    width = max(map(len, words), default=0)
    return [title, *(f"  {word:{width}}  {says}" for word, says in words.items())] * bool(words)
