"""The pytest plugin: options, markers, fixtures and hooks. Nothing heavy loads until it is used."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_neuralpower.errors import NeuralPowerError
from pytest_neuralpower.settings import add_options, read_settings

if TYPE_CHECKING:
    from pytest_neuralpower.session import Guard, GuardSession, NeuralPower

_MARKERS = {
    "energy_budget": "energy_budget(mj=None, j=None, uj=None, platform=None, per='call'): upper "
    "limit on the predicted gross device energy of one call (or per='sample') of each model that "
    "the test predicts",
    "runtime_budget": "runtime_budget(ms=None, us=None, s=None, platform=None, per='call'): upper "
    "limit on the predicted runtime of one call (or per='sample')",
    "power_budget": "power_budget(w=None, mw=None, platform=None): upper limit on the predicted "
    "mean power of one call",
}

_SESSION = pytest.StashKey["GuardSession"]()
_GUARD = pytest.StashKey["Guard"]()
_RECORDS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    for marker in _MARKERS.values():
        config.addinivalue_line("markers", marker)
    config.pluginmanager.register(_Summary(), "neuralpower-summary")
    settings = read_settings(config)
    for name in settings.platforms:
        try:
            _session(config).load(name)
        except NeuralPowerError as error:
            raise pytest.UsageError(str(error)) from None


def _session(config: pytest.Config) -> GuardSession:
    """Make the guarded session on first use: an idle plugin never loads it."""
    if _SESSION not in config.stash:
        from pytest_neuralpower.session import GuardSession  # noqa: PLC0415

        config.stash[_SESSION] = GuardSession(read_settings(config))
    return config.stash[_SESSION]


def _budget_markers(node: pytest.Item) -> list[pytest.Mark]:
    """The test's budget markers, closest first."""
    return [mark for mark in node.iter_markers() if mark.name in _MARKERS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a guarded test once per platform, where there are several."""
    if "neuralpower" in metafunc.fixturenames:
        markers = _budget_markers(metafunc.definition)
        platforms = _session(metafunc.config).platforms_for(markers)
        if len(platforms) > 1:
            metafunc.parametrize("neuralpower_platform", platforms)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if "neuralpower" in getattr(item, "fixturenames", ()) or _budget_markers(item):
        item.stash[_GUARD] = _new_guard(item)


def _new_guard(item: pytest.Item) -> Guard:
    callspec = getattr(item, "callspec", None)
    parametrised = callspec.params.get("neuralpower_platform") if callspec else None
    try:
        return _session(item.config).guard(item.nodeid, _budget_markers(item), parametrised)
    except NeuralPowerError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail the call itself, so that xfail and JUnit see a failure of the test."""
    try:
        result = yield
        guard = item.stash.get(_GUARD, None)
        records = _session(item.config).judge(guard) if guard else []
    except NeuralPowerError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    if records:
        from pytest_neuralpower.session import properties, raise_failures  # noqa: PLC0415

        item.stash[_RECORDS] = records
        item.user_properties.extend(properties(records))
        raise_failures(records)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call" and _RECORDS in item.stash:
        report.neuralpower = item.stash[_RECORDS]  # JSON types only: it survives xdist
    return report


class _Summary:
    """Gathers the records of all reports, also those from xdist workers, and shows them."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.records += getattr(report, "neuralpower", ())

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, config: pytest.Config
    ) -> None:
        verbosity = config.get_verbosity()
        if self.records and verbosity >= 0:
            from pytest_neuralpower.reports.terminal import summary_lines  # noqa: PLC0415

            terminalreporter.section("predicted energy and runtime (neuralpower)")
            for line in summary_lines(self.records):
                terminalreporter.line(line)


@pytest.fixture
def neuralpower_platform(request: pytest.FixtureRequest) -> str:
    """Name of the platform this test runs on; parametrised when there are several."""
    if _GUARD not in request.node.stash:  # asked for with request.getfixturevalue
        request.node.stash[_GUARD] = _new_guard(request.node)
    platform: str = request.node.stash[_GUARD].platform.name
    return platform


@pytest.fixture
def neuralpower(
    request: pytest.FixtureRequest,
    neuralpower_platform: str,  # noqa: ARG001 - what pytest parametrises
) -> NeuralPower:
    """Predict models on the test's platform: ``neuralpower.predict(model, *inputs)``."""
    from pytest_neuralpower.session import NeuralPower  # noqa: PLC0415

    return NeuralPower(request.node.stash[_GUARD])
