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

from pytest_neuralpower import predict

#: Has the execution mode of the paper's measurements.
AS_THE_PAPER_RAN = "titanx-tf"


@pytest.fixture
def guard(
    neuralpower: NeuralPower, record_property: Callable[[str, object], None]
) -> Callable[[str], Prediction]:
    """Predict one of the paper's networks at the paper's batch size, by its name in the paper."""

    def predict_network(name: str) -> Prediction:
        model, images = meta_call(PAPER_TABLE[name])
        prediction = neuralpower.predict(model, images)
        as_paper = predict(model, images, platform=AS_THE_PAPER_RAN)
        record_property("paper.network", name)
        for key, found in (("predicted", prediction), ("as_the_paper_ran", as_paper)):
            record_property(f"paper.{key}_ms", found.runtime_ms)
            record_property(f"paper.{key}_mj", found.energy_mj)
        return prediction

    return predict_network


class _PaperTable:
    """Reads the figures off the reports, where xdist brings them too."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties: dict[str, Any] = dict(report.user_properties)
        if report.when == "call" and "paper.network" in properties:
            self.found.append(properties)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.found:
            return
        terminalreporter.section("predicted beside the paper's Titan X (TensorFlow)")
        for quantity, unit, scale in (("runtime, ms", "ms", 1.0), ("energy, J", "mj", 1e3)):
            for line in self._table(quantity, unit, scale).splitlines():
                terminalreporter.line(line.rstrip())
            terminalreporter.line("")
        terminalreporter.line("The paper's TensorFlow ran without autotuning, as titanx-tf does;")
        terminalreporter.line("titanx takes the fastest algorithm of each convolution.")

    def _table(self, quantity: str, unit: str, scale: float) -> str:
        rows = []
        for found in sorted(self.found, key=lambda each: str(each["paper.network"])):
            paper = PAPER_TABLE[found["paper.network"]]
            measured = paper.paper_ms if unit == "ms" else paper.paper_j
            row = [paper.name, paper.input_shape[0], f"{measured:.3g}"]
            for key in ("predicted", "as_the_paper_ran"):
                value = found[f"paper.{key}_{unit}"] / scale
                row += [f"{value:.3g}", f"{value / measured - 1:+.0%}"]
            rows.append(row)
        platform = next(value for key, value in self.found[0].items() if key.endswith("platform"))
        headers = (quantity, "batch", "measured", platform, "off", AS_THE_PAPER_RAN, "off")
        align = ("left", *["right"] * 6)
        return tabulate(rows, headers, tablefmt="plain", colalign=align, disable_numparse=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_PaperTable(), "paper-table")
