"""Hold what a guarded test predicted against its baselines.

What is found is added to the records that travel on the test's report; nothing is written here: an
xdist worker sends the text of a baseline to be written to its controller.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.errors import BaselineError
from pytest_neuralpower.regression.baseline import baseline_of
from pytest_neuralpower.regression.baseline_file import baseline_text
from pytest_neuralpower.regression.comparison import compare, judge
from pytest_neuralpower.regression.comparison_record import comparison_record
from pytest_neuralpower.regression.store import BaselineStore, baseline_name
from pytest_neuralpower.regression.tolerance import DEFAULT, Tolerance, merge
from pytest_neuralpower.reports.compare import regression_text
from pytest_neuralpower.reports.session_report import torch_version

if TYPE_CHECKING:
    from pytest_neuralpower.platform import AnyPlatform
    from pytest_neuralpower.prediction import Prediction
    from pytest_neuralpower.regression.comparison import Comparison

__all__ = ["Held", "hold"]


@dataclass(frozen=True, slots=True)
class Held:
    """One guarded test, as far as its baselines are concerned.

    Attributes
    ----------
    test
        Its node id without the platform.
    marked
        Tolerances of its ``regression`` markers that apply to its platform, closest first.
    default
        The session's tolerance.
    update
        What to write: ``""`` nothing, ``"new"`` what is missing, ``"all"``.
    top
        Layers to show; 0 shows all.
    command, nodeid
        How pytest was asked to run, and this test.
    """

    test: str
    nodeid: str
    platform: AnyPlatform
    store: BaselineStore
    marked: Sequence[Tolerance]
    default: Tolerance
    update: str
    top: int
    command: str

    @property
    def accept(self) -> str:
        """The command that accepts the test's predictions."""
        return f"{self.command} --np-update-baseline {self.nodeid}"


def hold(held: Held, records: Sequence[dict[str, Any]], predictions: Sequence[Prediction]) -> None:
    """Add to each record its ``baseline``, its ``comparison`` and, if it is dearer, its failure.

    Raises
    ------
    BaselineError
        A baseline is broken or of another platform, or nothing of the tolerance can be judged.
    """
    tolerance = merge((*held.marked, held.default, DEFAULT))
    in_use = bool(held.marked) or held.store.in_use(held.platform.name)
    for number, (record, prediction) in enumerate(zip(records, predictions, strict=True), 1):
        name = baseline_name(held.test, number)
        if tolerance.baseline:
            name = tolerance.baseline if number == 1 else f"{tolerance.baseline}.{number}"
        path = held.store.path(prediction.platform, name)
        found: dict[str, Any] = {"name": name, "path": held.store.shown(path), "status": "none"}
        if held.update == "all" or (held.update == "new" and not path.exists()):
            text = baseline_text(baseline_of(prediction, test=held.test, torch=torch_version()))
            found.update(status="update", text=text)
        elif path.exists():
            _compare(held, record, prediction, name, tolerance)
            found["status"] = "held"
        elif in_use:
            found["status"] = "missing"
            if os.environ.get("CI") or os.environ.get("BUILD_NUMBER"):  # as pytest tells a CI
                _fail(record, "missing", _missing_text(held, found["path"]))
        if found["status"] != "none":
            record["baseline"] = found
            if record["outcome"] == "unbounded":
                record["outcome"] = "ok"


def _compare(
    held: Held,
    record: dict[str, Any],
    prediction: Prediction,
    name: str,
    tolerance: Tolerance,
) -> None:
    expected = baseline_of(prediction, test=held.test, torch=torch_version())
    baseline = held.store.read(prediction.platform, name, expected)
    assert baseline is not None  # the caller has looked
    comparison = compare(baseline, prediction, held.platform)
    _check_judged(comparison, tolerance)
    breaches = judge(comparison, tolerance)
    found = record["comparison"] = comparison_record(comparison, breaches)
    if breaches:
        path = held.store.shown(held.store.path(prediction.platform, name))
        text = regression_text(
            found, platform=prediction.platform, path=path, top=held.top, accept=held.accept
        )
        _fail(record, "regressed", text)


def _check_judged(comparison: Comparison, tolerance: Tolerance) -> None:
    if not any(
        tolerance.allowed(quantity, 1.0, layer=layer) is not None
        for quantity in comparison.quantities()
        for layer in (False, True)
    ):
        known = " and ".join(comparison.quantities())
        raise BaselineError(
            f"the tolerance says nothing of {known}, which is all that platform "
            f"{comparison.head.platform!r} predicts: give max_percent="
        )


def _missing_text(held: Held, path: str) -> str:
    return (
        f"no baseline yet: {path} is missing, and a CI writes none; on your machine run\n"
        f"  {held.command} --np-update-baseline=new {held.nodeid}\n"
        "and commit the file"
    )


def _fail(record: dict[str, Any], outcome: str, text: str) -> None:
    """A broken budget is the graver outcome; both texts are shown."""
    if record["outcome"] in ("ok", "unbounded"):
        record["outcome"] = outcome
    record["failure"] = "\n\n".join(filter(None, (record["failure"], text)))
