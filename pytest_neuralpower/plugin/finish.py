"""The end of a session: the summary, baselines that were asked for, stale ones, and reports."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Set
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from pytest_neuralpower.errors import BaselineError, NeuralPowerError
from pytest_neuralpower.guard.baseline import (
    BaselineStore,
    read_baseline,
    stored_test,
    torch_version,
    write_baseline,
)
from pytest_neuralpower.guard.finding import BaselineState, Finding, Report, findings_from_text
from pytest_neuralpower.plugin.options import COLLECTED, SETTINGS
from pytest_neuralpower.plugin.session import pytest_command
from pytest_neuralpower.text import printable, shell_word

if TYPE_CHECKING:
    from pytest_neuralpower.plugin.options import Settings

#: By node id, of all tests, also those that ran on xdist workers.
Findings: TypeAlias = Mapping[str, tuple[Finding, ...]]

#: So many files are named; of more only the count.
_NAMED: Final = 5


def show_findings(texts: Mapping[str, str], terminalreporter: pytest.TerminalReporter) -> None:
    """The summary section: one line for each prediction of each guarded test."""
    verbosity = terminalreporter.config.get_verbosity("neuralpower")
    if verbosity < 0:
        return
    from pytest_neuralpower.report.terminal import summary_lines  # noqa: PLC0415

    findings = {nodeid: findings_from_text(text) for nodeid, text in texts.items()}
    terminalreporter.section("predicted energy and runtime (neuralpower)")
    shown = [each for found in findings.values() for each in found]
    for line in summary_lines(shown, whole_ids=verbosity > 0):
        terminalreporter.line(line)
    measured = [
        (nodeid, each.measured)
        for nodeid, found in findings.items()
        for each in found
        if each.measured is not UNSET
    ]
    if measured:
        terminalreporter.section("measured on this device (neuralpower)")
        for nodeid, call in measured:
            terminalreporter.line(f"{printable(nodeid)}: {call.model} on {call.platform}")
            for line in call.lines():
                terminalreporter.line(f"  {line}")


def finish(
    session: pytest.Session,
    settings: Settings,
    texts: Mapping[str, str],
    outcomes: Mapping[str, str],
    *,
    collected: Set[str] | None,
) -> list[str]:
    """Write what the session was asked to write.

    Parameters
    ----------
    texts, outcomes
        By node id, of all tests, also those that ran on xdist workers.
    collected
        Node ids of the files of which every test was collected; None where tests were left out.

    Returns
    -------
    list of str
        Lines for the terminal. What cannot be written fails the session.
    """
    config = session.config
    findings: Findings = {
        nodeid: findings_from_text(text) for nodeid, text in sorted(texts.items())
    }
    store = BaselineStore(settings.baselines, config.rootpath)
    findings, lines, failed = _write_baselines(store, findings, outcomes)
    lines += _missing_lines(findings, pytest_command(config))
    stale: tuple[str, ...] = ()
    if collected is not None and not _is_narrowed(session, outcomes):
        stale = _stale_baselines(session, settings, store, findings, outcomes, collected=collected)
    lines += _stale_lines(stale)
    if settings.reports:
        from pytest_neuralpower.report.formats import write_reports  # noqa: PLC0415

        report = Report(
            plugin=version("pytest-neuralpower"),
            torch=torch_version(),
            stale_baselines=stale,
            predictions=tuple(each for found in findings.values() for each in found),
        )
        written, broken = write_reports(settings.reports, report, config)
        lines += written
        failed = failed or broken
    if failed and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return lines


def _write_baselines(
    store: BaselineStore, findings: Findings, outcomes: Mapping[str, str]
) -> tuple[Findings, list[str], bool]:
    """Write what findings have to be written: they as it went, lines, and whether it failed."""
    written, left, owners = list[str](), list[str](), dict[str, str]()
    unchanged, problems, stopped = 0, list[str](), False
    #: By platform, names as disks see them that take upper for lower case.
    stored = {
        platform: {name.casefold() for name in store.names(platform)}
        for platform in {each.platform for members in findings.values() for each in members}
    }

    def state_of(nodeid: str, finding: Finding, state: BaselineState, text: str) -> BaselineState:
        nonlocal unchanged, stopped
        name, status = state.name, state.status
        if outcomes.get(nodeid) != "passed":
            left.append(nodeid)
            return BaselineState(name, state.path, "left")
        if stopped:
            return BaselineState(name, state.path, status)
        path = store.path(finding.platform, name)
        taken = name.casefold() in stored[finding.platform] and not path.exists()
        if state.other_name is not UNSET and (taken or str(path).casefold() in owners):
            name = state.other_name
            path = store.path(finding.platform, name)
        shown, key = store.shown(path), str(path).casefold()
        if key in owners:
            problems.append(
                f"baseline {shown} is of two tests, {printable(owners[key])} and "
                f"{printable(nodeid)}: give one another name, regression(baseline=...)"
            )
            return BaselineState(name, shown, status)
        owners[key] = nodeid
        try:
            status = "written" if write_baseline(path, text) else "unchanged"
        except NeuralPowerError as error:
            problems.append(str(error))
            stopped = True
        unchanged += status == "unchanged"
        written.extend([shown] if status == "written" else [])
        return BaselineState(name, shown, status)

    findings = {
        nodeid: tuple(
            each
            if each.baseline is UNSET or each.baseline.text is UNSET
            else _with_state(each, state_of(nodeid, each, each.baseline, each.baseline.text))
            for each in members
        )
        for nodeid, members in findings.items()
    }
    lines = list(problems)
    if (written or unchanged) and not stopped:
        lines.append(f"baselines: {len(written)} written, {unchanged} unchanged")
        lines += [f"  {path}" for path in written[:_NAMED]]
    if left and not stopped:
        lines.append(f"baselines left as they are, their tests did not pass: {_named(left)}")
    return findings, lines, bool(problems)


def _with_state(finding: Finding, state: BaselineState) -> Finding:
    return replace(finding, name=state.name, baseline=state)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(printable, names[:_NAMED])) + more


def _missing_lines(findings: Findings, command: str) -> list[str]:
    missing = [
        nodeid
        for nodeid, found in findings.items()
        if any(each.baseline is not UNSET and each.baseline.status == "missing" for each in found)
    ]
    if not missing:
        return []
    return [
        f"no baseline yet for {_named(missing)}",
        f"  write it and commit the file: {command} --np-update-baseline=new",
    ]


# -- Stale baselines: no test of this session predicts them.

#: Options that leave out tests.
_NARROWING: Final = (
    *("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "stepwise"),
    *("collectonly", "last_failed_no_failures_none", "setuponly", "setupplan"),
)


def _stale_baselines(
    session: pytest.Session,
    settings: Settings,
    store: BaselineStore,
    findings: Findings,
    outcomes: Mapping[str, str],
    *,
    collected: Set[str],
) -> tuple[str, ...]:
    """Paths of stale baselines, sorted; asked for where no test was left out.

    One is stale when its test was not there, or passed without predicting it, in a run of all that
    was to be run where the test was. That of a test that failed or was skipped is not, nor one
    whose file is there and was not collected (``collect_ignore``, ``norecursedirs``).
    """
    # pytest-xdist appends a group to node ids.
    outcomes = {nodeid.partition("@")[0]: each for nodeid, each in outcomes.items()} | dict(
        outcomes
    )
    used: dict[str, set[str]] = {platform: set() for platform in settings.platforms}
    for finding in itertools.chain(*findings.values()):
        names = used.setdefault(finding.platform, set())
        if finding.baseline is not UNSET:
            names.add(finding.baseline.name)
    places = [Path(argument).absolute() for argument in session.config.args]

    def is_stale(path: Path, platform: str) -> bool:
        try:
            test = read_baseline(path).test
        except BaselineError:
            return False  # what it is of is not known; its test says that it is broken
        file = session.config.rootpath / test.partition("::")[0]
        if not any(file.is_relative_to(place) for place in places):  # also for node ids
            return False
        if file.exists() and test.partition("::")[0] not in collected:
            return False
        ran = {outcomes.get(nodeid) for nodeid in _with_platform(test, platform)}
        return ran <= {None, "passed"}

    paths = [
        (store.path(platform, name), platform)
        for platform in sorted(used)
        for name in store.names(platform)
        if name not in used[platform]
    ]
    return tuple(store.shown(path) for path, platform in paths if is_stale(path, platform))


def stale_of_collection(session: pytest.Session) -> list[str]:
    """Paths of the baselines whose tests were not collected, sorted, also of tests that hooks and
    options left out; silent on files that are there and were not collected."""
    config = session.config
    store = BaselineStore(config.stash[SETTINGS].baselines, config.rootpath)
    end: Any = config.pluginmanager.get_plugin("neuralpower-session-end")
    tests = {item.nodeid for item in config.stash.get(COLLECTED, [])}
    found = []
    for platform in sorted(path.name for path in store.folder.glob("*") if path.is_dir()):
        for name in store.names(platform):
            path = store.path(platform, name)
            test = stored_test(path)
            if test is None or not tests.isdisjoint(_with_platform(test, platform)):
                continue
            file = test.partition("::")[0]
            if file in end.collected or not (config.rootpath / file).exists():
                found.append(store.shown(path))
    return found


def _is_narrowed(session: pytest.Session, outcomes: Mapping[str, str]) -> bool:
    """Whether an option, a plugin or an early end left out tests (``-k``, ``-m``, ``-x``)."""
    option = session.config.option
    if any(getattr(option, name, None) for name in _NARROWING):
        return True
    stopped = session.shouldstop or session.shouldfail or session.exitstatus not in (0, 1, 5)
    if any(item.nodeid not in outcomes for item in session.items):
        return True
    maxfail = getattr(option, "maxfail", 0)
    return bool(stopped or (maxfail and session.testsfailed >= maxfail))


def _with_platform(test: str, platform: str) -> tuple[str, ...]:
    """Node ids of a test, alone on the platform or parametrised with several."""
    if not test.endswith("]"):
        return test, f"{test}[{platform}]"
    head, _, parameters = test[:-1].partition("[")
    return test, f"{head}[{parameters}-{platform}]", f"{head}[{platform}-{parameters}]"


def _stale_lines(stale: Sequence[str]) -> list[str]:
    if not stale:
        return []
    noun = "baseline is" if len(stale) == 1 else "baselines are"
    return [
        f"{len(stale)} {noun} stale: no test predicts it any more; remove it:",
        f"  git rm {' '.join(map(shell_word, stale))}",
    ]
