"""A platform's estimators as equations that a person can read, check and argue with."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pytest_neuralpower.errors import PlatformError
from pytest_neuralpower.estimators.meanings import meaning
from pytest_neuralpower.estimators.terms import is_term
from pytest_neuralpower.estimators.tree_nodes import Leaf, Node

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
    from pytest_neuralpower.platform import FamilyModel, Platform

#: What each quantity is called on the left of its equation.
_LEFT: Final = {"runtime": "runtime_ms", "power": "power_w", "energy": "energy_mj"}

#: Where a platform keeps the held-out scores of each quantity.
_SCORES: Final = {"runtime": "runtime", "power": "layer_power", "energy": "layer_energy"}

_SHOWN_INPUTS: Final = 6


def explain_text(platform: Platform, family_name: str) -> str:
    """The fitted equations of one family of layers, with their units.

    Parameters
    ----------
    platform
        Any platform.
    family_name
        A family that it has estimators of (``conv``, ``linear``, ...).

    Raises
    ------
    PlatformError
        It has none of that family; one line names those it has.
    """
    model = platform.families.get(family_name)
    if model is None:
        raise PlatformError(
            f"platform {platform.name} has no estimator of {family_name!r}; it has "
            f"{', '.join(platform.families) or 'none'}; other layers are priced by their traffic "
            f"at {platform.fallback.bandwidth_gbs:g} GB/s"
        )
    lines = [f"{family_name} on {platform.name}: {platform.device}, {platform.dtype}", ""]
    estimators: dict[str, Estimator] = dict(model.estimators)
    if platform.power is not None:
        estimators.setdefault("power", platform.power)
    for quantity, estimator in estimators.items():
        lines += [f"{_LEFT.get(quantity, quantity)}, by {estimator.name}"]
        lines[-1] += _held_out(platform.accuracy, quantity, family_name)
        lines += _indented(_equations(estimator, _LEFT.get(quantity, quantity)))
        if quantity == "runtime":
            lines += _indented(_surcharges(model))
        lines.append("")
    return "\n".join([*lines, *_legend(lines)]).rstrip()


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
    for number, (regime, fitted) in enumerate(
        zip(estimator.regimes, estimator.fitted_, strict=True)
    ):
        body = _sum(left, _in_units(fitted.rates, fitted.scale))
        body.append(f"kept between {fitted.low:.3g} and {fitted.high:.3g} times the roofline")
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
