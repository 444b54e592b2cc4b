"""What happens once all tests have run: baselines and reports are written, by one process alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_neuralpower.settings import Settings


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
            from pytest_neuralpower.regression.finishing import finish  # noqa: PLC0415

            self.lines = finish(self, session, records)

    @pytest.hookimpl(trylast=True)  # below the summary of what was predicted
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.lines:
            terminalreporter.line(line)
