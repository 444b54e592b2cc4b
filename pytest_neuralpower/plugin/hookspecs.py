"""Hooks that a ``conftest.py`` or another plugin can implement; ``docs/hooks.md`` has examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.platform.protocol import Platform

__all__ = [
    "pytest_neuralpower_platform",
    "pytest_neuralpower_prediction",
    "pytest_neuralpower_report_formats",
]


@pytest.hookspec(firstresult=True)
def pytest_neuralpower_platform(name: str, config: pytest.Config) -> Platform | Path | str | None:
    """Provide the platform ``name``, before shipped platforms and files are looked at.

    Parameters
    ----------
    name
        As ``--np-platform``, the ini option or a marker names it.

    Returns
    -------
    Platform, path of a platform file, or None
        None leaves the name to others. The first that is not None counts.
    """


def pytest_neuralpower_report_formats(
    config: pytest.Config,
) -> Mapping[str, Callable[[Mapping[str, Any]], str]] | None:
    """Add formats to ``--np-report``.

    Returns
    -------
    mapping
        Suffix, such as ``".csv"``, to a function that makes the file's text of the report's
        record, the content of the JSON report. Asked for and called in the process that writes,
        never on an xdist worker.
    """


def pytest_neuralpower_prediction(
    item: pytest.Item, prediction: Prediction, record: Mapping[str, Any]
) -> None:
    """See each prediction of a guarded test, once it is judged.

    Called where the test ran, on an xdist worker too.

    Parameters
    ----------
    prediction
        With every layer.
    record
        What the JSON report has of it but ``name`` and ``layers``: its budgets, ``outcome``,
        comparison with the baseline.
    """
