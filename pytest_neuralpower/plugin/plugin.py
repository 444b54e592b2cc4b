"""The pytest plugin: options, markers, fixtures and hooks. Nothing heavy loads until it is used."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_neuralpower.errors import NeuralPowerError
from pytest_neuralpower.plugin import hookspecs
from pytest_neuralpower.plugin.options import add_options, read_settings, repeated_command
from pytest_neuralpower.plugin.session_end import OneLineMistakes, SessionEnd, Summary

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_neuralpower.plugin.options import Settings
    from pytest_neuralpower.plugin.session import Guard, GuardSession, NeuralPower, PlacedMarker

_MARKERS = {
    "energy_budget": "energy_budget(mj=None, j=None, uj=None, platform=None, per='call', "
    "samples=None): upper limit on the predicted energy of one call (or per='sample') of each "
    "model that the test predicts: gross device energy, or what an analytic platform counts",
    "runtime_budget": "runtime_budget(ms=None, us=None, s=None, platform=None, per='call', "
    "samples=None): upper limit on the predicted runtime of one call (or per='sample')",
    "power_budget": "power_budget(w=None, mw=None, platform=None): upper limit on the predicted "
    "mean power of one call",
    "regression": "regression(max_percent=None, max_mj=None, max_ms=None, layer_max_percent=None, "
    "layer_max_mj=None, layer_max_ms=None, per='call', baseline=None, platform=None): how much "
    "more than its stored baseline each model that the test predicts may cost",
}

_SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()
_SESSION: pytest.StashKey[GuardSession] = pytest.StashKey()
_GUARD: pytest.StashKey[Guard] = pytest.StashKey()
_ITEMS: pytest.StashKey[Iterable[pytest.Item]] = pytest.StashKey()
_RECORDS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    for marker in _MARKERS.values():
        config.addinivalue_line("markers", marker)
    config.pluginmanager.register(OneLineMistakes(), "neuralpower-mistakes")
    config.pluginmanager.register(Summary(), "neuralpower-summary")
    settings = config.stash[_SETTINGS] = read_settings(config)
    config.pluginmanager.register(SessionEnd(settings), "neuralpower-session-end")
    try:
        for name in settings.platforms:
            platform = _session(config).load(name)
            live = _session(config).live
            if live is not None:
                live.device(platform)
        if settings.tolerance or settings.update_baseline or settings.reports:
            from pytest_neuralpower.plugin.session import check_settings  # noqa: PLC0415

            check_settings(settings, config)
    except NeuralPowerError as error:
        raise pytest.UsageError(str(error)) from None


def _session(config: pytest.Config) -> GuardSession:
    """Make the guarded session on first use: an idle plugin never loads it."""
    if _SESSION not in config.stash:
        from pytest_neuralpower.plugin.session import GuardSession  # noqa: PLC0415

        config.stash[_SESSION] = GuardSession(
            config.stash[_SETTINGS],
            config.rootpath,
            repeated_command(config),
            partial(config.hook.pytest_neuralpower_platform, config=config),
            lambda: sum(map(_is_guarded, config.stash[_ITEMS])),
        )
    return config.stash[_SESSION]


def _budget_markers(node: pytest.Item) -> list[PlacedMarker]:
    """The test's budget markers, closest first; empty for what can take no fixture (doctests)."""
    if not isinstance(node, pytest.Function) and not hasattr(node, "neuralpower_platform"):
        return []
    found = [pair for pair in node.iter_markers_with_node() if pair[1].name in _MARKERS]
    if not found:
        return []
    from pytest_neuralpower.plugin.session import PlacedMarker  # noqa: PLC0415

    chain = node.listchain()
    return [PlacedMarker(len(chain) - 1 - chain.index(place), mark) for place, mark in found]


def _is_guarded(item: pytest.Item) -> bool:
    return "neuralpower_platform" in getattr(item, "fixturenames", ()) or bool(
        _budget_markers(item)
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[_ITEMS] = session.items


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a guarded test once per platform, where there are several."""
    if "neuralpower_platform" in metafunc.fixturenames:
        markers = _budget_markers(metafunc.definition)
        platforms = _session(metafunc.config).platforms_for(markers)
        if len(platforms) > 1:
            metafunc.parametrize("neuralpower_platform", platforms)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if _RECORDS in item.stash:  # a rerun: nothing of the last attempt may stay
        del item.stash[_RECORDS]
        kept = [pair for pair in item.user_properties if not pair[0].startswith("neuralpower")]
        item.user_properties[:] = kept
    if _is_guarded(item):
        item.stash[_GUARD] = _new_guard(item)


def guard_of(item: pytest.Item) -> Guard:
    """What a test of a budget file predicts with, once it is set up."""
    return item.stash[_GUARD]


def session_platforms(config: pytest.Config) -> tuple[str, ...]:
    """Platforms chosen for the whole session."""
    return config.stash[_SETTINGS].platforms


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.name.endswith((".budget.yaml", ".budget.yml")):
        from pytest_neuralpower.plugin.budget_files import BudgetFile  # noqa: PLC0415

        return BudgetFile.from_parent(parent, path=file_path)
    return None


def _new_guard(item: pytest.Item) -> Guard:
    callspec = getattr(item, "callspec", None)
    parametrised = getattr(item, "neuralpower_platform", None)  # of a budget file
    if callspec:
        parametrised = callspec.params.get("neuralpower_platform")
    return _session(item.config).guard(item.nodeid, _budget_markers(item), parametrised)


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
        records = _judge(item)
    finally:  # a session of many tests would keep every layer of every prediction
        if _GUARD in item.stash:
            del item.stash[_GUARD]
    if records:
        from pytest_neuralpower.plugin.session import raise_failures  # noqa: PLC0415

        raise_failures(records)
    return result


def _judge(item: pytest.Item, *, failed: bool = False) -> list[dict[str, Any]]:
    """Judge what the test predicted and keep the records for its report."""
    markers = _budget_markers(item)
    if _GUARD not in item.stash and (failed or not markers):
        return []
    if _GUARD not in item.stash:  # a marker was added while the test ran
        item.stash[_GUARD] = _new_guard(item)
    session, guard = _session(item.config), item.stash[_GUARD]
    records = session.judge(guard, markers, failed=failed)
    if records:
        from pytest_neuralpower.plugin.session import Place, complete, marked_tolerances  # noqa: PLC0415
        from pytest_neuralpower.report.ci import properties  # noqa: PLC0415

        tolerances = () if failed else marked_tolerances(session, guard, markers)
        complete(session, guard, Place.of(item, guard), tolerances, records, failed=failed)
        item.stash[_RECORDS] = records
        item.user_properties.extend(properties(records))
        for prediction, record in zip(guard.predictions, records, strict=True):
            # For reports the layers are kept as text; a hook has those of the prediction.
            seen = {key: value for key, value in record.items() if key != "layers"}
            item.ihook.pytest_neuralpower_prediction(item=item, prediction=prediction, record=seen)
    return records


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call" and _RECORDS in item.stash:
        # JSON types only, so that it survives xdist.
        report.neuralpower = item.stash[_RECORDS]  # type: ignore[attr-defined]
    return report


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
    from pytest_neuralpower.plugin.session import NeuralPower  # noqa: PLC0415

    return NeuralPower(request.node.stash[_GUARD])
