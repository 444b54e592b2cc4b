"""What every estimator is: fitted on columns, predicting with numpy alone, stored as JSON."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from pytest_neuralpower.errors import FitError, MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.estimators.features import Columns, FloatArray

#: Line numbers named in one message; the rest are counted.
_NAMED_LINES = 5


class Estimator(ABC):
    """Predicts one quantity (runtime in ms, power in W, energy in mJ) of one family of layers.

    Constructor arguments are hyper-parameters; attributes that end in ``_`` exist once it is
    fitted. Fitting may need the extra ``calibrate``; predicting needs numpy only.
    """

    #: Name in recipes, platform files and reports.
    name: ClassVar[str]

    #: Columns in which predictions never fall: a layer that has more of one of them, all other
    #: columns as they were and within one :meth:`part`, is never predicted less.
    never_falls_in: ClassVar[tuple[str, ...]] = ()

    def fit(
        self,
        columns: Columns,
        target: FloatArray,
        *,
        lines: Sequence[int] | None = None,
        groups: Sequence[Hashable] | None = None,
    ) -> Self:
        """Fit to measured rows.

        Parameters
        ----------
        columns
            What :func:`pytest_neuralpower.estimators.features.columns` made of the rows' layers.
        target
            Measured values, shape ``(rows,)``, in the quantity's unit.
        lines
            Line of each row in its file, for messages; row numbers from 1 by default.
        groups
            Rows that must stay together where hyper-parameters are chosen by cross-validation:
            the layer's shape. Each row is its own group by default.

        Raises
        ------
        FitError
            A value is not a positive number, or the rows are too alike to tell layers apart.
        MissingExtraError
            The extra ``calibrate`` is not installed.
        """
        refuse_bad_rows(columns, target, lines)
        target = np.asarray(target, dtype=np.float64)
        self._tune(columns, target, range(len(target)) if groups is None else groups)
        self._fit(columns, target)
        refuse_constant(self, columns, target)
        return self

    def _tune(  # noqa: B027 - most estimators have nothing to choose
        self, columns: Columns, target: FloatArray, groups: Sequence[Hashable]
    ) -> None:
        """Choose hyper-parameters by grouped cross-validation, where there are any to choose."""

    @abstractmethod
    def _fit(self, columns: Columns, target: FloatArray) -> None:
        """Set the fitted attributes; ``target`` is finite and positive."""

    @abstractmethod
    def predict(self, columns: Columns) -> FloatArray:
        """Predicted values, shape ``(rows,)``."""

    def part(self, columns: Columns) -> NDArray[np.intp]:
        """Which part of the estimator (regime, leaf) predicts each row, shape ``(rows,)``."""
        return np.zeros(len(columns["flops"]), dtype=np.intp)

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain data from which :meth:`from_json` makes an estimator of the same bits."""

    @classmethod
    @abstractmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The estimator that :meth:`to_json` described.

        Raises
        ------
        KeyError, TypeError, ValueError
            The data is not such a description; the platform's loader words the message.
        """


def refuse_bad_rows(
    columns: Columns, target: FloatArray, lines: Sequence[int] | None = None
) -> None:
    """Raise a FitError that names the lines whose target or columns are not usable numbers."""
    target = np.asarray(target, dtype=np.float64)
    if target.size == 0:
        raise FitError("no measured rows: nothing can be fitted")
    bad = ~(np.isfinite(target) & (target > 0))
    for values in columns.values():
        bad |= ~np.isfinite(values)
    found = np.flatnonzero(bad)
    if not found.size:
        return
    where = [lines[row] if lines is not None else row + 1 for row in found.tolist()]
    named = ", ".join(str(line) for line in where[:_NAMED_LINES])
    more = f" and {len(where) - _NAMED_LINES} more" if len(where) > _NAMED_LINES else ""
    raise FitError(
        f"measured values must be positive numbers; NaN, zero or negative at line {named}{more}: "
        "remove these rows or measure them again"
    )


def refuse_constant(estimator: Estimator, columns: Columns, target: FloatArray) -> None:
    """Raise a FitError when the fitted estimator says the same of every row."""
    predicted = estimator.predict(columns)
    if np.ptp(predicted) > 1e-9 * float(np.max(np.abs(predicted))):
        return
    raise FitError(
        f"{estimator.name}: the {len(target)} rows are too alike, the fit collapses to a constant "
        f"({predicted[0]:.4g} for every row): measure configurations of different sizes"
    )


def need_extra(module: str) -> MissingExtraError:
    """The error for a fitting library that is not installed."""
    return MissingExtraError(
        f"fitting needs {module}, which is not installed: "
        "pip install 'pytest-neuralpower[calibrate]'"
    )
