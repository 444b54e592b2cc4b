"""Baselines that no test of this session predicts any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.errors import BaselineError
from pytest_neuralpower.guard.baseline import read_baseline

if TYPE_CHECKING:
    import pytest

    from pytest_neuralpower.guard.baseline import BaselineStore
    from pytest_neuralpower.plugin.session_end import SessionEnd

__all__ = ["stale_baselines", "without_platform"]

#: Options that leave out tests.
_NARROWING = (
    *("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "stepwise"),
    *("collectonly", "last_failed_no_failures_none"),
)


def stale_baselines(
    end: SessionEnd,
    session: pytest.Session,
    store: BaselineStore,
    records: Mapping[str, Sequence[Mapping[str, Any]]],
) -> tuple[str, ...]:
    """Paths of stale baselines, sorted; none where tests were left out (``-k``, ``-m``, ``-x``).

    One is stale when its test was not there, or passed without predicting it, in a run of all that
    was to be run where the test was. That of a test that failed or was skipped is not.
    """
    if end.partial or _is_narrowed(session):
        return ()
    used: dict[str, set[str]] = {}
    for found in records.values():
        for record in found:
            names = used.setdefault(record["platform"], set())
            if "baseline" in record:
                names.add(record["baseline"]["name"])
    places = [Path(argument).absolute() for argument in session.config.args]
    stale = []
    for platform in sorted({*used, *end.settings.platforms}):
        for name in store.names(platform):
            path = store.path(platform, name)
            if name not in used.get(platform, ()) and _is_stale(
                path, platform, end, session, places
            ):
                stale.append(store.shown(path))
    return tuple(stale)


def _is_narrowed(session: pytest.Session) -> bool:
    option = session.config.option
    if any(getattr(option, name, None) for name in _NARROWING):
        return True
    stopped = session.shouldstop or session.shouldfail or session.exitstatus not in (0, 1, 5)
    maxfail = getattr(option, "maxfail", 0)
    return bool(stopped or (maxfail and session.testsfailed >= maxfail))


def _is_stale(
    path: Path, platform: str, end: SessionEnd, session: pytest.Session, places: Iterable[Path]
) -> bool:
    try:
        test = read_baseline(path).test
    except BaselineError:
        return False  # what it is of is not known; its test says that it is broken
    file = session.config.rootpath / test.partition("::")[0]
    if not any(file.is_relative_to(place) for place in places):  # also for node ids
        return False
    ran = {end.outcomes.get(nodeid) for nodeid in _with_platform(test, platform)}
    return ran <= {None, "passed"}


def _with_platform(test: str, platform: str) -> tuple[str, ...]:
    """Node ids of a test, alone on the platform or parametrised with several."""
    if not test.endswith("]"):
        return test, f"{test}[{platform}]"
    head, _, parameters = test[:-1].partition("[")
    return test, f"{head}[{parameters}-{platform}]", f"{head}[{platform}-{parameters}]"


def without_platform(nodeid: str, platform: str) -> str:
    """The node id of a test that is parametrised with several platforms, without this one."""
    for written, plain in ((f"[{platform}]", ""), (f"-{platform}]", "]"), (f"[{platform}-", "[")):
        if written in nodeid:
            return nodeid.replace(written, plain)
    return nodeid
