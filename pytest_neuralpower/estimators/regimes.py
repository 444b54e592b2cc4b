"""Regimes: parts of a family that run on different code, each fitted on its own rows."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from pytest_neuralpower.estimators.terms import is_term
from pytest_neuralpower.features import op_code

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.features import Columns, FloatArray

_COMPARE: Final[dict[str, Callable[[FloatArray, float], NDArray[np.bool_]]]] = {
    "==": operator.eq,
    "<=": operator.le,
    ">=": operator.ge,
    # Integer multiples set kernels apart as much as sizes do (FastDeepIoT, section 4.2).
    "%": lambda column, value: column % value == 0,
}


class Condition(NamedTuple):
    """``column op value``; ``%`` is true of whole multiples of ``value``, ``is`` of the operation's
    name alone (``["op", "is", "gelu"]``)."""

    column: str
    op: str
    value: float | str

    def holds(self, columns: Columns) -> NDArray[np.bool_]:
        if isinstance(self.value, str):
            return np.asarray(columns[self.column] == op_code(self.value))
        return _COMPARE[self.op](columns[self.column], self.value)

    def __str__(self) -> str:
        if isinstance(self.value, str):
            return f"{self.column} is {self.value}"
        if self.op == "%":
            return f"{self.column} is a multiple of {self.value:g}"
        return f"{self.column} {self.op} {self.value:.10g}"

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Condition:
        """The condition ``[column, op, value]``.

        Raises
        ------
        TypeError, ValueError
            It is none, or there is no such comparison.
        """
        column, op, value = data
        if op == "is":
            return cls("op", "is", str(value))
        if op not in _COMPARE:
            raise ValueError(f"unknown comparison {op!r}")
        return cls(str(column), str(op), float(value))


class Regime(NamedTuple):
    """Rows for which all of ``when`` hold, and the physical terms that price them.

    Attributes
    ----------
    name
        What runs there (``winograd``, ``gemm``).
    terms
        Names that :func:`pytest_neuralpower.estimators.terms.evaluate` knows.
    when
        Conditions on columns; none holds for every row.
    """

    name: str
    terms: tuple[str, ...]
    when: tuple[Condition, ...] = ()

    def holds(self, columns: Columns) -> NDArray[np.bool_]:
        mask = np.ones(len(columns["flops"]), dtype=bool)
        for condition in self.when:
            mask &= condition.holds(columns)
        return mask

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "when": [[each.column, each.op, each.value] for each in self.when],
            "terms": list(self.terms),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Regime:
        try:
            conditions = tuple(Condition.from_json(each) for each in data["when"])
        except ValueError as error:
            raise ValueError(f"{error} in regime {data['name']!r}") from None
        terms = tuple(str(term) for term in data["terms"])
        for term in terms:
            if not is_term(term):
                raise ValueError(f"unknown term {term!r} in regime {data['name']!r}")
        return cls(str(data["name"]), terms, conditions)


def assign(regimes: Sequence[Regime], columns: Columns) -> NDArray[np.intp]:
    """Index of the first regime that holds for each row.

    Raises
    ------
    ValueError
        The last regime has conditions: some layer might fall through.
    """
    if regimes[-1].when:
        raise ValueError(f"the last regime, {regimes[-1].name!r}, must hold for every row")
    chosen = np.full(len(columns["flops"]), len(regimes) - 1, dtype=np.intp)
    for index in range(len(regimes) - 2, -1, -1):
        chosen[regimes[index].holds(columns)] = index
    return chosen
