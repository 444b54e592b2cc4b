"""A user's mistake inside a test is one line at its place, never a traceback through our code."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_neuralpower.errors import NeuralPowerError
from pytest_neuralpower.guard.baseline import BaselineStore, write_baseline
from pytest_neuralpower.guard.stale import stale_baselines
from pytest_neuralpower.plugin.options import repeated_command

if TYPE_CHECKING:
    from pytest_neuralpower.plugin.options import Settings

__all__ = [
    "finish",
]


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
            from pytest_neuralpower.calibrate.measure.network import measured_lines  # noqa: PLC0415

            terminalreporter.section("measured on this device (neuralpower)")
        for test, record in found:
            terminalreporter.line(f"{test}: {record['model']} on {record['platform']}")
            for line in measured_lines(record):
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
            self.lines = finish(self, session, records)

    @pytest.hookimpl(trylast=True)  # below the summary of what was predicted
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.lines:
            terminalreporter.line(line)


# -- The end of a session: write baselines that were asked for, find stale ones, write reports.

Records = Mapping[str, Sequence[dict[str, Any]]]

#: So many files are named; of more only the count.
_NAMED = 5


def finish(end: SessionEnd, session: pytest.Session, records: Records) -> list[str]:
    """Write what the session was asked to write.

    Parameters
    ----------
    records
        By node id, of all tests, also those that ran on xdist workers.

    Returns
    -------
    list of str
        Lines for the terminal. What cannot be written fails the session.
    """
    store = BaselineStore(end.settings.baselines, session.config.rootpath)
    lines, failed = _write_baselines(end, store, records)
    command = repeated_command(session.config)
    lines += _missing_lines(records, command)
    stale = stale_baselines(end, session, store, records)
    lines += _stale_lines(stale)
    if end.settings.reports:
        from pytest_neuralpower.report.formats import write_reports  # noqa: PLC0415

        written, broken = write_reports(end.settings.reports, records, stale, session.config)
        lines += written
        failed = failed or broken
    if failed and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return lines


def _write_baselines(
    end: SessionEnd, store: BaselineStore, records: Records
) -> tuple[list[str], bool]:
    written, left, owners = [], [], dict[Path, str]()
    kept, lines, failed = 0, [], False
    for nodeid in sorted(records):
        for record in records[nodeid]:
            text = record.get("baseline", {}).pop("text", None)
            if text is None:
                continue
            path = store.path(record["platform"], record["baseline"]["name"])
            if end.outcomes.get(nodeid) != "passed":
                left.append(nodeid)
                record["baseline"]["status"] = "left"
                continue
            if path in owners:
                lines.append(
                    f"baseline {store.shown(path)} is of two tests, {owners[path]} and {nodeid}: "
                    "give one another name, regression(baseline=...)"
                )
                failed = True
                continue
            owners[path] = nodeid
            try:
                changed = write_baseline(path, text)
            except NeuralPowerError as error:
                return [*lines, str(error)], True
            record["baseline"]["status"] = "written" if changed else "unchanged"
            if changed:
                written.append(store.shown(path))
            else:
                kept += 1
    if written or kept:
        lines.append(f"baselines: {len(written)} written, {kept} unchanged")
        lines += [f"  {each}" for each in written[:_NAMED]]
    if left:
        lines.append(f"baselines left as they are, their tests did not pass: {_named(left)}")
    return lines, failed


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _missing_lines(records: Records, command: str) -> list[str]:
    missing = sorted(
        nodeid
        for nodeid, found in records.items()
        if any(each.get("baseline", {}).get("status") == "missing" for each in found)
    )
    if not missing:
        return []
    return [
        f"no baseline yet of {_named(missing)}",
        f"  write it and commit the file: {command} --np-update-baseline=new",
    ]


def _stale_lines(stale: Sequence[str]) -> list[str]:
    if not stale:
        return []
    noun = "baseline is" if len(stale) == 1 else "baselines are"
    return [
        f"{len(stale)} {noun} stale: no test predicts it any more; remove it:",
        f"  git rm {' '.join(map(shlex.quote, stale))}",
    ]
