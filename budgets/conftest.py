"""Prints what was predicted next to what the paper measured, after the guarded networks ran."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from pytest_neuralpower.guard.finding import findings_from_text

if TYPE_CHECKING:
    import pytest

sys.path.insert(0, str(Path(__file__).parent))


_FILE = "networks.budget.yaml::"


class _PaperTable:
    """Reads the figures off the reports, where xdist brings them too."""

    def __init__(self) -> None:
        #: Runtime (ms) and energy (mJ) by the network's name in the file and the platform.
        self.found: dict[tuple[str, str], tuple[float, float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if _FILE not in report.nodeid:
            return
        name = report.nodeid.partition(_FILE)[2].partition("[")[0]
        for finding in findings_from_text(getattr(report, "neuralpower", "[]")):
            if finding.runtime_ms is not None and finding.energy_mj is not None:
                values = finding.runtime_ms, finding.energy_mj
                self.found[name, finding.platform] = values

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.found:
            return
        terminalreporter.section("predicted next to the paper's Titan X (TensorFlow)")
        for quantity, place, scale in (("runtime, ms", 0, 1.0), ("energy, J", 1, 1e3)):
            for line in self._table(quantity, place, scale).splitlines():
                terminalreporter.line(line.rstrip())
            terminalreporter.line("")
        terminalreporter.line("The paper's TensorFlow ran without autotuning, as titanx-tf does;")
        terminalreporter.line("titanx takes the fastest algorithm of each convolution.")

    def _table(self, quantity: str, place: int, scale: float) -> str:
        from networks import NETWORKS  # noqa: PLC0415 - imports torch, which others may not need

        names = {name for name, _ in self.found}
        platforms = sorted({platform for _, platform in self.found})
        rows = []
        for network in sorted(NETWORKS, key=lambda each: each.name):
            name = network.factory.__name__
            if name not in names:
                continue
            measured = (network.paper_ms, network.paper_j)[place]
            row: list[Any] = [network.name, network.input_shape[0], f"{measured:.3g}"]
            for platform in platforms:
                value = self.found.get((name, platform))
                shown = ("-", "-")
                if value is not None:
                    found = value[place] / scale
                    shown = f"{found:.3g}", f"{found / measured - 1:+.0%}"
                row += shown
            rows.append(row)
        headers = [quantity, "batch", "measured"]
        headers += [part for platform in platforms for part in (platform, "off")]
        align = ["left", *["right"] * (len(headers) - 1)]
        return tabulate(rows, headers, tablefmt="plain", colalign=align, disable_numparse=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_PaperTable(), "paper-table")
