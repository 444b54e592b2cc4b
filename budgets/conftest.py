"""Prints what was predicted beside what the paper measured, after the guarded networks ran."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tabulate import tabulate

if TYPE_CHECKING:
    from pytest_neuralpower import Prediction
    from pytest_neuralpower.session import NeuralPower

sys.path.insert(0, str(Path(__file__).parent))
from networks import PAPER_TABLE, meta_call

HEADERS = (
    "network", "batch", "platform", "runtime ms", "measured", "off", "energy J", "measured", "off",
)  # fmt: skip


@pytest.fixture
def guard(
    neuralpower: NeuralPower, record_property: Callable[[str, object], None]
) -> Callable[[str], Prediction]:
    """Predict one of the paper's networks at the paper's batch size, by its name in the paper."""

    def predict(name: str) -> Prediction:
        record_property("paper_network", name)
        return neuralpower.predict(*meta_call(PAPER_TABLE[name]))

    return predict


class _PaperTable:
    """Reads the figures off the reports, where xdist brings them too."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = dict(report.user_properties)
        if report.when == "call" and "neuralpower.runtime_ms" in found:
            paper = PAPER_TABLE[str(found["paper_network"])]
            runtime = float(str(found["neuralpower.runtime_ms"]))
            energy = float(str(found["neuralpower.energy_mj"])) / 1e3
            self.rows.append(
                [
                    paper.name,
                    paper.input_shape[0],
                    found["neuralpower.platform"],
                    f"{runtime:.1f}",
                    f"{paper.paper_ms:.1f}",
                    f"{runtime / paper.paper_ms - 1:+.0%}",
                    f"{energy:.2f}",
                    f"{paper.paper_j:.2f}",
                    f"{energy / paper.paper_j - 1:+.0%}",
                ]
            )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.rows:
            return
        terminalreporter.section("predicted beside the paper (Titan X, TensorFlow, ACML 2017)")
        align = ("left", *["right"] * 8)
        table = tabulate(
            self.rows, HEADERS, tablefmt="plain", colalign=align, disable_numparse=True
        )
        for line in table.splitlines():
            terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_PaperTable(), "paper-table")
