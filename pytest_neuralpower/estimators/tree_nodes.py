"""The nodes of a tree: conditions, and lines in the leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from pytest_neuralpower.estimators.regimes import Condition

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.features import Columns, FloatArray

__all__ = ["Leaf", "Node", "Split", "cut", "leaf_numbers", "leaves", "line_values", "node_of"]


class Leaf(NamedTuple):
    """The line ``sum of rate x term`` (``launch`` is the constant), and how many rows gave it."""

    rates: Mapping[str, float]
    rows: int

    def to_json(self) -> dict[str, Any]:
        return {"rows": self.rows, "rates": dict(self.rates)}


class Split(NamedTuple):
    """Rows for which ``condition`` holds go to ``yes``; ``here`` is the leaf that a tree cut off
    at this node has in its place (None once it is stored)."""

    condition: Condition
    yes: Node
    no: Node
    here: Leaf | None = None

    def to_json(self) -> dict[str, Any]:
        each = self.condition
        return {
            "if": [each.column, each.op, each.value],
            "yes": self.yes.to_json(),
            "no": self.no.to_json(),
        }


Node: TypeAlias = Leaf | Split


def node_of(data: Mapping[str, Any], terms: Sequence[str]) -> Node:
    """The node that ``to_json`` described.

    Raises
    ------
    KeyError, TypeError, ValueError
        It describes none, or a leaf has the rate of something that is not among ``terms``.
    """
    if "if" in data:
        condition = Condition.from_json(data["if"])
        return Split(condition, node_of(data["yes"], terms), node_of(data["no"], terms))
    rates = {str(term): float(rate) for term, rate in data["rates"].items()}
    for term in rates:
        if term not in terms:
            raise ValueError(f"rate of {term!r}, which is no term of the tree")
    return Leaf(rates, int(data["rows"]))


def cut(node: Node, depth: int) -> Node:
    """The tree with at most ``depth`` conditions above a leaf."""
    if isinstance(node, Leaf):
        return node
    if depth == 0:
        assert node.here is not None, "only fresh trees are cut"
        return node.here
    return Split(node.condition, cut(node.yes, depth - 1), cut(node.no, depth - 1), node.here)


def leaves(node: Node) -> Iterator[Leaf]:
    """The leaves, those for which the first condition holds first."""
    if isinstance(node, Leaf):
        yield node
    else:
        yield from leaves(node.yes)
        yield from leaves(node.no)


def leaf_numbers(node: Node, columns: Columns) -> NDArray[np.intp]:
    """Which of the :func:`leaves` each row falls into."""
    result = np.zeros(len(columns["flops"]), dtype=np.intp)
    _number(node, columns, np.arange(len(result)), 0, result)
    return result


def _number(
    node: Node, columns: Columns, rows: NDArray[np.intp], first: int, result: NDArray[np.intp]
) -> int:
    """Number the leaves below from ``first``; returns the number after the last."""
    if isinstance(node, Leaf):
        result[rows] = first
        return first + 1
    column = node.condition.column
    holds = node.condition.holds({column: columns[column][rows]})
    after = _number(node.yes, columns, rows[holds], first, result)
    return _number(node.no, columns, rows[~holds], after, result)


def line_values(node: Node, columns: Columns, terms: Mapping[str, FloatArray]) -> FloatArray:
    """What the line of each row's leaf says, given the values of the terms."""
    found = list(leaves(node))
    chosen = leaf_numbers(node, columns)
    result = np.zeros(len(chosen))
    for term, values in terms.items():
        rates = np.array([leaf.rates.get(term, 0.0) for leaf in found])
        result += rates[chosen] * values
    return result
