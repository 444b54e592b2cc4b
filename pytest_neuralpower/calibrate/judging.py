"""What a family of layers must pass before it ships: its baselines, and rows set apart for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pytest_neuralpower.errors import FitError
from pytest_neuralpower.estimators.selection import Score, select

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.rows import Row
    from pytest_neuralpower.estimators import Estimator
    from pytest_neuralpower.features import Columns, FloatArray


#: Held-out MAPE (%) under which a tie with the roofline is as good as beating it: tensors that are
#: only streamed take what the roofline says, and no knowledge could add to that.
EXACT: Final = 1.0


def beats(mape: float, baselines: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether an estimator's held-out MAPE (%) is below that of every baseline that could be
    fitted: what does not beat counting operations or the roofline is not worth shipping."""
    margin = 0.05 if mape < EXACT else 0.0
    return all(mape < score["mape"] + margin for score in baselines.values() if "mape" in score)


def is_kept(found: Mapping[str, Any], *, alone: str = "") -> bool:
    """Whether a family's chosen estimator is kept: it must beat its baselines.

    Parameters
    ----------
    found
        Held-out scores, which was chosen, and the baselines' scores.
    alone
        The one baseline that counts: of a device measured on the spot the one that would price
        the family instead.
    """
    baselines = found["baselines"]
    mape: float = found["held_out"][found["chosen"]]["mape"]
    return beats(mape, {alone: baselines[alone]} if alone else baselines)


def judge_split(
    rows: Sequence[Row],
    values: Columns,
    runtime: FloatArray,
    makers: Mapping[str, Callable[[], Estimator]],
) -> dict[str, Any] | None:
    """Errors on the rows that a source was set apart for, of estimators that saw none of them.

    The candidates compete on the other rows alone; the one that wins there is what is judged,
    whatever the others score here.

    Returns
    -------
    dict or None
        ``trained`` and ``judged`` (numbers of rows), ``chosen`` and every candidate's score; None
        when no row is set apart.

    Raises
    ------
    FitError
        The other rows cannot be fitted.
    """
    apart = np.array([row.judges for row in rows])
    if not apart.any() or apart.all():
        return None
    seen = {name: each[~apart] for name, each in values.items()}
    unseen = {name: each[apart] for name, each in values.items()}
    groups = [row.shape_group for row in rows if not row.judges]
    chosen = select(makers, seen, runtime[~apart], groups)
    scores: dict[str, Any] = {}
    for name, make in makers.items():
        try:
            fitted = make().fit(seen, runtime[~apart], groups=groups)
            scores[name] = Score.of(fitted.predict(unseen), runtime[apart]).to_json()
        except FitError as error:
            scores[name] = {"refused": str(error)}
    return {
        "trained": int((~apart).sum()),
        "judged": int(apart.sum()),
        "chosen": chosen.estimator.name,
        "scores": scores,
    }
