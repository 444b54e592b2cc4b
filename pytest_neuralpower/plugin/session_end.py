"""What a session says: mistakes at their place, the summary, and what is written at its end."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_neuralpower.errors import NeuralPowerError

if TYPE_CHECKING:
    from pytest_neuralpower.plugin.options import Settings


class OneLineMistakes:
    """Turns an error of ours that a test or a fixture lets through into one line, at its place."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._run(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._run(item))

    def _run(self, item: pytest.Item) -> Generator[None, object, object]:
        try:
            return (yield)
        except NeuralPowerError as error:
            text = f"{self._place(item, error)}{error}"
            raise pytest.fail.Exception(text, pytrace=False) from None

    def _place(self, item: pytest.Item, error: BaseException) -> str:
        """``test_model.py:12: `` where the user's code is on the way to the error; else empty."""
        place, step = "", error.__traceback__
        while step is not None:
            path = Path(step.tb_frame.f_code.co_filename)
            if path.name.startswith(("test_", "conftest")) and path.is_relative_to(
                item.config.rootpath
            ):
                place = f"{path.relative_to(item.config.rootpath)}:{step.tb_lineno}: "
            step = step.tb_next
        return place


# -- The summary section: one line for each prediction of each guarded test.


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
            from pytest_neuralpower.report.terminal import summary_lines  # noqa: PLC0415

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
            import msgspec  # noqa: PLC0415 - only once used

            from pytest_neuralpower.calibrate.measure.network import CallComparison  # noqa: PLC0415

            terminalreporter.section("measured on this device (neuralpower)")
        for test, record in found:
            terminalreporter.line(f"{test}: {record['model']} on {record['platform']}")
            for line in msgspec.convert(record, CallComparison).lines():
                terminalreporter.line(f"  {line}")


# -- What happens once all tests have run: baselines and reports are written, by one process alone.


class SessionEnd:
    """Follows the tests, and hands over at the end where there is anything to write.

    On xdist it is the controller's that writes: a worker has ``config.workerinput``.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.outcomes: dict[str, str] = {}
        self.partial = False
        self.lines: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            # A test whose teardown fails has failed.
            outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
            self.outcomes[report.nodeid] = outcome

    def pytest_deselected(self) -> None:
        self.partial = True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:  # a module that is skipped or broken has unknown tests
            self.partial = True

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """xdist: a worker is done and tells whether it left out tests."""
        if getattr(node, "workeroutput", {}).get("neuralpower_partial"):
            self.partial = True

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):
            if self.partial:
                session.config.workeroutput["neuralpower_partial"] = True  # type: ignore[attr-defined]
            return
        records = session.config.pluginmanager.get_plugin("neuralpower-summary").records  # type: ignore[union-attr]
        if records or self.settings.reports:
            from pytest_neuralpower.plugin.finish import finish  # noqa: PLC0415

            self.lines = finish(self, session, records)

    @pytest.hookimpl(trylast=True)  # below the summary of what was predicted
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.lines:
            terminalreporter.line(line)
