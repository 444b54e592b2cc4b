"""The controller of a session: collects findings of all workers and ends the session."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_neuralpower.errors import NeuralPowerError

if TYPE_CHECKING:
    from pytest_neuralpower.plugin.options import Settings


class SessionEnd:
    """Turns errors of ours into one line, gathers the findings of all reports, also those from
    xdist workers, and hands over at the end where there is anything to show or to write.

    On xdist it is the controller's that writes: a worker has ``config.workerinput``.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        #: Node id -> findings as text; the last attempt of a rerun counts.
        self.findings: dict[str, str] = {}
        self.outcomes: dict[str, str] = {}
        #: Whether tests were left out.
        self.partial = False
        self.lines: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from _one_line_errors(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from _one_line_errors(item))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if hasattr(report, "neuralpower"):
            self.findings[report.nodeid] = report.neuralpower
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
        elif self.findings or self.settings.reports:
            from pytest_neuralpower.plugin.finish import finish  # noqa: PLC0415

            self.lines = finish(
                session, self.settings, self.findings, self.outcomes, partial=self.partial
            )

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.findings:
            from pytest_neuralpower.plugin.finish import show_findings  # noqa: PLC0415

            show_findings(self.findings, terminalreporter)
        for line in self.lines:
            terminalreporter.line(line)


def _one_line_errors(item: pytest.Item) -> Generator[None, object, object]:
    """Turn an error of ours that a test or a fixture lets through into one line, at its place."""
    try:
        return (yield)
    except NeuralPowerError as error:
        text = f"{_place(item, error)}{error}"
        raise pytest.fail.Exception(text, pytrace=False) from None


def _place(item: pytest.Item, error: BaseException) -> str:
    """``test_model.py:12: `` where the user's code is on the way to the error; else empty."""
    place, step, root = "", error.__traceback__, item.config.rootpath
    while step is not None:
        path = Path(step.tb_frame.f_code.co_filename)
        if path.name.startswith(("test_", "conftest")) and path.is_relative_to(root):
            place = f"{path.relative_to(root)}:{step.tb_lineno}: "
        step = step.tb_next
    return place
