"""What is added to the records of a test once it is judged: baselines, and what reports show."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_neuralpower.regression.tolerance import (
    MARKER,
    Tolerance,
    parse_texts,
    parse_tolerance,
)
from pytest_neuralpower.settings import platform_at

if TYPE_CHECKING:
    import pytest

    from pytest_neuralpower.session import Guard, GuardSession, PlacedMarker
    from pytest_neuralpower.settings import Settings

__all__ = ["Place", "check_settings", "complete", "marked_tolerances"]

TOLERANCE_OPTION = "--np-tolerance"


def check_settings(settings: Settings, config: pytest.Config) -> None:
    """Check what the session was asked to hold against and to write, before any test runs.

    Raises
    ------
    NeuralPowerError
        With one line: a tolerance is misspelt, or a folder or file cannot be written.
    """
    from pytest_neuralpower.regression.store import BaselineStore  # noqa: PLC0415
    from pytest_neuralpower.reports.formats import check_targets, known_formats  # noqa: PLC0415

    parse_texts(settings.tolerance, TOLERANCE_OPTION)
    if not hasattr(config, "workerinput"):  # an xdist worker writes nothing
        check_targets(settings.reports, known_formats(config))
        if settings.update_baseline:
            BaselineStore(settings.baselines, config.rootpath).check_writable()


class Place(NamedTuple):
    """A test: its node id without the platform, its file and its line (from 1, None if unknown)."""

    test: str
    file: str
    line: int | None

    @classmethod
    def of(cls, item: pytest.Item, guard: Guard) -> Place:
        """Where an item is; the platform of one that is parametrised with several is left out."""
        from pytest_neuralpower.regression.stale import without_platform  # noqa: PLC0415

        callspec = getattr(item, "callspec", None)
        several = callspec is not None and "neuralpower_platform" in callspec.params
        several = several or getattr(item, "several_platforms", False)  # of a budget file
        test = without_platform(item.nodeid, guard.name) if several else item.nodeid
        file, line, _ = item.location
        return cls(test, file, None if line is None else line + 1)


def marked_tolerances(
    session: GuardSession, guard: Guard, markers: Sequence[PlacedMarker]
) -> tuple[Tolerance, ...]:
    """Tolerances of the ``regression`` markers that apply to the test's platform, closest first.

    Raises
    ------
    BaselineError
        A marker is misused.
    """
    found = [
        parse_tolerance(placed.mark.args, placed.mark.kwargs, MARKER)
        for placed in sorted(markers, key=lambda each: each.distance)
        if placed.mark.name == MARKER
    ]
    return tuple(
        each
        for each in found
        if each.platform is None or platform_at(each.platform, session.rootpath) == guard.name
    )


def complete(
    session: GuardSession,
    guard: Guard,
    place: Place,
    tolerances: Sequence[Tolerance],
    records: Sequence[dict[str, Any]],
    *,
    failed: bool = False,
) -> None:
    """Hold what a test predicted against its baselines, and add what reports need.

    Parameters
    ----------
    tolerances
        Of the test itself, closest first; with one of these a baseline is demanded.
    failed
        The test failed by itself: no baseline is looked at.

    Raises
    ------
    BaselineError
        A baseline cannot be used.
    """
    settings = session.settings
    if (tolerances or any(each["budgets"] for each in records)) and not failed:
        from pytest_neuralpower.regression.guarding import Held, hold  # noqa: PLC0415
        from pytest_neuralpower.regression.store import BaselineStore  # noqa: PLC0415

        held = Held(
            test=place.test,
            nodeid=shlex.quote(guard.nodeid),
            platform=guard.platform,
            store=BaselineStore(settings.baselines, session.rootpath),
            marked=tolerances,
            default=parse_texts(settings.tolerance, TOLERANCE_OPTION),
            update=settings.update_baseline,
            top=settings.top,
            command=session.command,
        )
        hold(held, records, guard.predictions)
    if settings.reports:
        from pytest_neuralpower.reports.formats import need_layers  # noqa: PLC0415
        from pytest_neuralpower.reports.provenance import platform_facts  # noqa: PLC0415
        from pytest_neuralpower.reports.session_report import details, layers_text  # noqa: PLC0415

        known = platform_facts(guard.platform)
        for record, prediction in zip(records, guard.predictions, strict=True):
            record.update(file=place.file, line=place.line, provenance=known, **details(prediction))
            if need_layers(settings.reports):
                record["layers"] = layers_text(prediction)
