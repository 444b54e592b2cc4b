"""The pytest plugin: hooks and fixtures. Nothing heavy loads until it is used."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_neuralpower.plugin import hookspecs
from pytest_neuralpower.plugin.options import (
    COLLECTED,
    FINDINGS,
    GUARD,
    MARKERS,
    SETTINGS,
    Settings,
    add_options,
    read_settings,
    refuse_misspelt,
)

if TYPE_CHECKING:
    from pytest_neuralpower.plugin.session import GuardSession, Markers, NeuralPower

_SESSION: pytest.StashKey[GuardSession] = pytest.StashKey()


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    add_options(parser)
    config = pluginmanager.get_plugin("pytestconfig")
    refuse_misspelt(config.invocation_params.args if config else ())


def pytest_configure(config: pytest.Config) -> None:
    for name, usage in MARKERS.items():
        config.addinivalue_line("markers", f"{name}{usage}")
    settings = config.stash[SETTINGS] = read_settings(config)
    config.pluginmanager.register(SessionEnd(settings), "neuralpower-session-end")
    if settings.platforms or settings.tolerance or settings.update_baseline or settings.reports:
        from pytest_neuralpower.errors import NeuralPowerError  # noqa: PLC0415

        try:
            _session(config).prepare(config)
        except NeuralPowerError as error:
            raise pytest.UsageError(str(error)) from None


def _session(config: pytest.Config) -> GuardSession:
    """Make the guarded session on first use: an idle plugin never loads it."""
    if _SESSION not in config.stash:
        from pytest_neuralpower.collector import collector_paused  # noqa: PLC0415

        with collector_paused():
            from pytest_neuralpower.plugin.session import GuardSession  # noqa: PLC0415

        config.stash[_SESSION] = GuardSession.of(config, _is_guarded)
    return config.stash[_SESSION]


def _markers(node: pytest.Item) -> Markers:
    """The test's budget markers, closest first; none for what can take no fixture (doctests)."""
    if not isinstance(node, pytest.Function) and not hasattr(node, "neuralpower_platform"):
        return []
    found = [pair for pair in node.iter_markers_with_node() if pair[1].name in MARKERS]
    chain = node.listchain()[::-1] if found else []
    return [(chain.index(owner), mark) for owner, mark in found]


def _is_guarded(item: pytest.Item) -> bool:
    return "neuralpower_platform" in getattr(item, "fixturenames", ()) or bool(_markers(item))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a guarded test once per platform, where there are several."""
    if "neuralpower_platform" in metafunc.fixturenames:
        platforms = _session(metafunc.config).platforms_for(_markers(metafunc.definition))
        if len(platforms) > 1:
            metafunc.parametrize("neuralpower_platform", platforms)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.name.endswith((".budget.yaml", ".budget.yml")):
        from pytest_neuralpower.plugin.budget_files import BudgetFile  # noqa: PLC0415

        return BudgetFile.from_parent(parent, path=file_path)
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if FINDINGS in item.stash:  # a rerun: nothing of the last attempt may stay
        del item.stash[FINDINGS]
        kept = [pair for pair in item.user_properties if not pair[0].startswith("neuralpower")]
        item.user_properties[:] = kept
    if _is_guarded(item):
        item.stash[GUARD] = _session(item.config).guard_item(item, _markers(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail the call itself, so that xfail and JUnit see a failure of the test."""
    try:
        result = yield
    except pytest.skip.Exception:
        raise
    except BaseException:  # the test's own failure wins; what it predicted is still listed
        _judge(item, failed=True)
        raise
    else:
        _judge(item)
    finally:  # a session of many tests would keep every layer of every prediction
        if GUARD in item.stash:
            del item.stash[GUARD]
    return result


def _judge(item: pytest.Item, *, failed: bool = False) -> None:
    markers = _markers(item)  # also what was added while the test ran
    if GUARD in item.stash or (markers and not failed):
        _session(item.config).judge_item(item, markers, failed=failed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call" and FINDINGS in item.stash:
        report.neuralpower = item.stash[FINDINGS]  # type: ignore[attr-defined]
    # pytest's short summary has a line; in a CI it would repeat the whole failure.
    headline = getattr(call.excinfo and call.excinfo.value, "headline", None)
    crash = getattr(report.longrepr, "reprcrash", None)
    if headline and crash is not None:
        crash.message = headline
    return report


@pytest.fixture
def neuralpower_platform(request: pytest.FixtureRequest) -> str:
    """Name of the platform this test runs on; parametrised when there are several."""
    item = request.node
    if GUARD not in item.stash:  # asked for with request.getfixturevalue
        item.stash[GUARD] = _session(item.config).guard_item(item, _markers(item))
    platform: str = item.stash[GUARD].platform.name
    return platform


@pytest.fixture
def neuralpower(
    request: pytest.FixtureRequest,
    neuralpower_platform: str,  # noqa: ARG001 - what pytest parametrises
) -> NeuralPower:
    """Predict models on the test's platform: ``neuralpower.predict(model, *inputs)``."""
    from pytest_neuralpower.plugin.session import NeuralPower  # noqa: PLC0415

    return NeuralPower(request.node.stash[GUARD])


# -- The end of a session.


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
        self.failed_subtests: set[str] = set()
        #: Whether tests were left out.
        self.partial = False
        #: Node ids of files and folders whose tests were all collected.
        self.collected: set[str] = set()
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
        outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        if hasattr(report, "context"):  # of a subtest; its test may well pass
            if outcome == "failed":
                self.failed_subtests.add(report.nodeid)
        elif report.when == "call" or report.outcome != "passed":
            # A test whose teardown fails has failed.
            failed = report.nodeid in self.failed_subtests and outcome == "passed"
            self.outcomes[report.nodeid] = "failed" if failed else outcome
            self.failed_subtests.discard(report.nodeid)

    def pytest_deselected(self) -> None:
        self.partial = True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:  # a module that is skipped or broken has unknown tests
            self.partial = True
        elif "::" not in report.nodeid:
            self.collected.add(report.nodeid)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> Generator[None, object, object]:
        config.stash[COLLECTED] = items[:]
        return (yield)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        # Plugins that split tests into shards take them away without a word.
        if len(session.items) < len(session.config.stash.get(COLLECTED, ())):
            self.partial = True

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """xdist: a worker is done and tells whether it left out tests."""
        output = getattr(node, "workeroutput", {})
        if output.get("neuralpower_partial"):
            self.partial = True
        self.collected.update(output.get("neuralpower_collected", ()))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):
            output = session.config.workeroutput  # type: ignore[attr-defined]
            output["neuralpower_partial"] = self.partial
            output["neuralpower_collected"] = sorted(self.collected)
        elif self.findings or self.settings.reports:
            from pytest_neuralpower.plugin.finish import finish  # noqa: PLC0415

            self.lines = finish(
                session,
                self.settings,
                self.findings,
                self.outcomes,
                collected=None if self.partial else self.collected,
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
    except Exception as error:
        from pytest_neuralpower.errors import NeuralPowerError  # noqa: PLC0415

        if not isinstance(error, NeuralPowerError):
            raise
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
