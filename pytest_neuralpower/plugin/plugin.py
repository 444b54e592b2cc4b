"""The pytest plugin: hooks and fixtures. Nothing heavy loads until it is used."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from pytest_neuralpower.errors import NeuralPowerError
from pytest_neuralpower.plugin import hookspecs
from pytest_neuralpower.plugin.options import (
    FINDINGS,
    GUARD,
    MARKERS,
    SETTINGS,
    add_options,
    read_settings,
    refuse_misspelt,
)
from pytest_neuralpower.plugin.session_end import SessionEnd

if TYPE_CHECKING:
    from pathlib import Path

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
