"""The summary section: one line for each prediction of each guarded test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


class Summary:
    """Gathers the records of all reports, also those from xdist workers, and shows them."""

    def __init__(self) -> None:
        self.records: dict[str, list[dict[str, Any]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if hasattr(report, "neuralpower"):
            self.records[report.nodeid] = report.neuralpower  # the last attempt of a rerun counts

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, config: pytest.Config
    ) -> None:
        if self.records and config.get_verbosity("neuralpower") >= 0:
            from pytest_neuralpower.reports.summary import summary_lines  # noqa: PLC0415

            terminalreporter.section("predicted energy and runtime (neuralpower)")
            records = [each for found in self.records.values() for each in found]
            verbose = config.get_verbosity("neuralpower") > 0
            for line in summary_lines(records, whole_ids=verbose):
                terminalreporter.line(line)
            self._show_measured(terminalreporter)

    def _show_measured(self, terminalreporter: pytest.TerminalReporter) -> None:
        found = [
            (test, each["measured"])
            for test, records in self.records.items()
            for each in records
            if "measured" in each
        ]
        if found:
            from pytest_neuralpower.reports.measured import measured_lines  # noqa: PLC0415

            terminalreporter.section("measured on this device (neuralpower)")
        for test, record in found:
            terminalreporter.line(f"{test}: {record['model']} on {record['platform']}")
            for line in measured_lines(record):
                terminalreporter.line(f"  {line}")
