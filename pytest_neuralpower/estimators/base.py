"""What every estimator is: fitted on columns, predicting with numpy alone, stored as JSON."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeAlias

import numpy as np
from msgspec import Meta, Struct, to_builtins

from pytest_neuralpower.errors import FitError, MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_neuralpower.estimators.features import Columns, FloatArray

#: Line numbers named in one message; the rest are counted.
_NAMED_LINES = 5


#: Numbers of files: rates and sizes that cannot be negative, ceilings that cannot be 0, and counts;
#: none so large that what is computed of it is no number.
NonNegative: TypeAlias = Annotated[float, Meta(ge=0, le=1e30)]
Positive: TypeAlias = Annotated[float, Meta(ge=1e-30, le=1e30)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=10**6)]


class Estimator(
    Struct,
    tag_field="estimator",
    forbid_unknown_fields=True,
    rename=lambda name: name.rstrip("_"),
    eq=False,
):
    """Predicts one quantity (runtime in ms, power in W, energy in mJ) of one family of layers.

    Fields are hyper-parameters; those that end in ``_`` are set once it is fitted. Together they
    are what a platform file stores, under their names without ``_``. Fitting may need the extra
    ``calibrate``; predicting needs numpy only.
    """

    #: Name in recipes, platform files and reports.
    name: ClassVar[str]

    @property
    def label(self) -> str:
        """Name in reports: of what is wrapped, where another estimator is."""
        return self.name

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

    def _tune(self, columns: Columns, target: FloatArray, groups: Sequence[Hashable]) -> None:
        """Choose hyper-parameters by grouped cross-validation, where there are any to choose."""

    def _fit(self, columns: Columns, target: FloatArray) -> None:
        """Set the fitted attributes; ``target`` is finite and positive."""
        raise NotImplementedError

    def predict(self, columns: Columns) -> FloatArray:
        """Predicted values, shape ``(rows,)``."""
        raise NotImplementedError

    def evaluate_all(self, columns: Columns) -> None:
        """Use every column that any row might need.

        Raises
        ------
        KeyError
            There is no such column: the estimator is of another family.
        ValueError
            It asks for a term or an input that there is not.
        """
        self.predict(columns)

    def to_json(self) -> dict[str, object]:
        """Plain data, as a platform file stores it."""
        found: dict[str, object] = to_builtins(self)
        return found


def some_rows(columns: Columns, rows: NDArray[Any]) -> dict[str, FloatArray]:
    """The columns of some rows: a mask, or their numbers."""
    return {name: values[rows] for name, values in columns.items()}


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


def check_fitting() -> None:
    """Look for what fitting needs, before anything is measured for it.

    Raises
    ------
    MissingExtraError
        Something is not installed.
    """
    needed = {
        "sklearn": "scikit-learn",
        "scipy": "SciPy",
        "joblib": "joblib",
        "filelock": "filelock",
    }
    for module, name in needed.items():
        if find_spec(module) is None:
            raise need_extra(name)


def need_extra(module: str) -> MissingExtraError:
    """The error for a fitting library that is not installed."""
    return MissingExtraError(
        f"fitting needs {module}, which is not installed: "
        "pip install 'pytest-neuralpower[calibrate]'"
    )
