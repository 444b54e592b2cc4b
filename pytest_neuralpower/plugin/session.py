"""One guarded pytest session: which platform a test runs on, what it predicted, what it broke.

A `Guard` belongs to one test and is thrown away with it; what outlives the test is a list of
plain records that travels on its report, also from an xdist worker to its controller.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
import pytest

from pytest_neuralpower.errors import BaselineError, BudgetError
from pytest_neuralpower.guard.baseline import (
    BaselineStore,
    baseline_name,
    baseline_of,
    baseline_text,
)
from pytest_neuralpower.guard.budget import MARKERS, Budget, check, closest_budgets, parse_marker
from pytest_neuralpower.guard.compare import compare, judge
from pytest_neuralpower.guard.tolerance import (
    DEFAULT,
    MARKER,
    Tolerance,
    merge,
    parse_texts,
    parse_tolerance,
)
from pytest_neuralpower.platform.prediction import UNTRUSTED
from pytest_neuralpower.plugin.options import platform_at
from pytest_neuralpower.report.compare import regression_text
from pytest_neuralpower.report.formats import torch_version

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.measure.network import CallComparison, Live
    from pytest_neuralpower.guard.compare import Comparison
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.platform.protocol import Platform
    from pytest_neuralpower.plugin.options import Settings

__all__ = [
    "Held",
    "Place",
    "check_settings",
    "complete",
    "hold",
    "marked_tolerances",
]


Model = TypeVar("Model")


# pytest exports the class of its failures only as an attribute of `fail`.
class BudgetExceeded(pytest.fail.Exception):  # type: ignore[misc, name-defined]
    """A prediction of a guarded test is over its budget."""

    __module__ = "builtins"  # as pytest's own outcomes: its name alone in the short summary


class PredictionUntrusted(pytest.fail.Exception):  # type: ignore[misc, name-defined]
    """Too much of a prediction is not vouched for by measurements, under ``--np-strict``."""

    __module__ = "builtins"


class BaselineExceeded(pytest.fail.Exception):  # type: ignore[misc, name-defined]
    """A prediction of a guarded test costs more than its stored baseline allows."""

    __module__ = "builtins"


class BaselineMissing(pytest.fail.Exception):  # type: ignore[misc, name-defined]
    """A CI has no baseline to hold a prediction against, and writes none."""

    __module__ = "builtins"


class PlacedMarker(NamedTuple):
    """A budget marker and how far out it stands: 0 on the function, more on class and module."""

    distance: int
    mark: pytest.Mark


@dataclass
class Guard:
    """Where one test runs, and what it predicted. ``name`` is the platform as it was asked for."""

    nodeid: str
    name: str
    platform: Platform
    predictions: list[Prediction] = field(default_factory=list)
    live: Live | None = None
    #: Place among the predictions -> measured against predicted, under ``--np-measure``.
    measured: dict[int, CallComparison] = field(default_factory=dict)
    #: The test's budgets as it started, and the calls that are over one of them: place among the
    #: predictions -> model, args, kwargs. Others are let go.
    budgets: tuple[Budget, ...] = ()
    over: dict[int, tuple[Any, Sequence[Any], Mapping[str, Any]]] = field(default_factory=dict)

    def keep_if_over(self, model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Keep the call that was predicted last, for advice, if it breaks a budget."""
        if any(_breaks(budget, self.predictions[-1]) for budget in self.budgets):
            self.over[len(self.predictions) - 1] = (model, args, kwargs)

    def measure(self, model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Measure the model that was predicted last, if the session does that."""
        if self.live is not None:
            prediction = self.predictions[-1]
            self.measured[len(self.predictions) - 1] = self.live.measure(
                model, args, kwargs, platform=self.platform, prediction=prediction
            )


class NeuralPower:
    """The ``neuralpower`` fixture: predicts models on the test's platform.

    Attributes
    ----------
    platform
        The platform this test runs on.
    """

    def __init__(self, guard: Guard) -> None:
        self.platform = guard.platform
        self._guard = guard

    def predict(self, model: Any, /, *args: Any, **kwargs: Any) -> Prediction:
        """Predict one forward call ``model(*args, **kwargs)`` and hold it against the budgets.

        The model is traced, never run: its weights, and the values of floating-point inputs, do
        not matter and may live on the meta device.

        Parameters
        ----------
        model : torch.nn.Module
        *args, **kwargs
            The call's inputs, as the model takes them; the first dimension of the first tensor is
            the batch.

        Returns
        -------
        Prediction
            ``energy_mj``, ``runtime_ms`` and ``power_w`` of the call, and of each layer.

        Raises
        ------
        TraceError
            If the model cannot be traced with these inputs.
        PlatformError
            If the platform cannot price one of its layers.
        """
        from pytest_neuralpower.platform.catalog import predict_call  # noqa: PLC0415 - imports torch

        prediction = predict_call(model, args, kwargs, platform=self.platform)
        self._guard.predictions.append(prediction)
        self._guard.keep_if_over(model, args, kwargs)
        self._guard.measure(model, args, kwargs)
        return prediction

    @staticmethod
    def build(factory: Callable[..., Model], /, *args: Any, **kwargs: Any) -> Model:
        """Build ``factory(*args, **kwargs)`` on torch's meta device: no weights, 5-60x faster.

        A factory that needs real values while it builds is built on the CPU instead.
        """
        from pytest_neuralpower.model_source import build  # noqa: PLC0415 - imports torch

        return build(factory, *args, **kwargs)


@dataclass
class GuardSession:
    """One pytest process: its settings and its loaded platforms.

    ``rootpath`` is where paths in markers start; ``command`` is how pytest was asked to run, as far
    as a failure's advice must repeat it; ``provide`` asks plugins for a platform by its ``name=``;
    ``count_guarded`` counts the session's guarded tests, all of them on an xdist worker, too.
    """

    settings: Settings
    rootpath: Path = field(default_factory=Path)
    command: str = "pytest"
    provide: Callable[..., Platform | Path | str | None] = lambda name: None  # noqa: ARG005
    count_guarded: Callable[[], int] = lambda: 1
    _loaded: dict[str, Platform] = field(default_factory=dict)
    _live: Live | None = None

    def load(self, name: str) -> Platform:
        """Load a platform once a session; raises PlatformError."""
        if name not in self._loaded:
            from pytest_neuralpower.platform.catalog import load_platform  # noqa: PLC0415 - imports numpy

            found = self.provide(name=name)
            if found is None or isinstance(found, str | Path):
                found = load_platform(found or name)
            self._loaded[name] = found
        return self._loaded[name]

    @property
    def live(self) -> Live | None:
        """What measures on the device, under ``--np-measure``; made on first use."""
        if self.settings.measure and self._live is None:
            from pytest_neuralpower.calibrate.measure.network import Live  # noqa: PLC0415 - imports torch

            self._live = Live()
        return self._live

    def platforms_for(self, markers: Sequence[PlacedMarker]) -> tuple[str, ...]:
        """Platforms a test runs on: those its markers name, and for the rest the session's.

        A misused marker is passed over here; `guard` reports it.
        """
        given = [placed.mark.kwargs.get("platform") for placed in markers]
        named = [platform_at(name, self.rootpath) for name in given if name and type(name) is str]
        if len(named) < len(markers) or not markers:
            named += self.settings.platforms
        return tuple(dict.fromkeys(named))

    def guard(
        self, nodeid: str, markers: Sequence[PlacedMarker], parametrised: str | None
    ) -> Guard:
        """Settle a test's platform, and check its markers before it runs.

        Raises
        ------
        NeuralPowerError
            With one line, for a misused marker, or no single loadable platform to run on.
        """
        parsed = _parse(markers)
        regressions = [placed.mark for placed in markers if placed.mark.name not in MARKERS]
        if regressions:
            from pytest_neuralpower.guard.tolerance import parse_tolerance  # noqa: PLC0415

            for mark in regressions:
                parse_tolerance(mark.args, mark.kwargs, mark.name)
        platforms = (parametrised,) if parametrised else self.platforms_for(markers)
        if not platforms:
            raise BudgetError(_no_platform_text())
        if len(platforms) > 1:
            raise BudgetError(
                f"this test runs on {len(platforms)} platforms ({', '.join(platforms)}): take the "
                "`neuralpower` fixture as an argument, so that it runs once for each, or choose one"
            )
        name = platforms[0]
        if parsed and not self._applicable(name, parsed):
            others = ", ".join(sorted({each.platform for _, each in parsed if each.platform}))
            raise BudgetError(
                f"this test runs on {name!r}, but its budgets are for {others}: add a budget for "
                f"{name!r} or leave out platform="
            )
        budgets = closest_budgets(self._applicable(name, parsed))
        return Guard(nodeid, name, self.load(name), live=self.live, budgets=budgets)

    def _applicable(
        self, name: str, parsed: Sequence[tuple[int, Budget]]
    ) -> list[tuple[int, Budget]]:
        """The budgets for a platform, each with its distance.

        A budget that names no platform is meant for the session's platforms; where the session has
        chosen none, for whichever platform the other markers name.
        """
        for_default = name in self.settings.platforms or not self.settings.platforms
        return [
            (distance, budget)
            for distance, budget in parsed
            if (for_default if budget.platform is None else self._is(budget.platform, name))
        ]

    def _is(self, written: str, name: str) -> bool:
        return platform_at(written, self.rootpath) == name

    def judge(
        self, guard: Guard, markers: Sequence[PlacedMarker], *, failed: bool = False
    ) -> list[dict[str, Any]]:
        """Hold every prediction of one test against its budgets, once it has run.

        Parameters
        ----------
        markers
            As they are now: a test or a fixture may have added one.
        failed
            The test failed by itself: its predictions are listed, and nothing is demanded.

        Returns
        -------
        list of dict
            One record a prediction, of JSON types only; the text of what was broken, if anything,
            is under ``"failure"``.

        Raises
        ------
        BudgetError
            If the test has a budget and predicted nothing.
        """
        budgets = closest_budgets(self._applicable(guard.name, _parse(markers)))
        regressions = [placed for placed in markers if placed.mark.name not in MARKERS]
        if (budgets or regressions) and not guard.predictions and not failed:
            what = "a budget" if budgets else "a regression marker"
            raise BudgetError(
                f"the test has {what} but predicted nothing: call "
                "neuralpower.predict(model, *inputs) in it (`neuralpower` is a fixture)"
            )
        records = [
            self._judge_one(guard, budgets, place) for place in range(len(guard.predictions))
        ]
        for place, measured in guard.measured.items():
            records[place]["measured"] = measured.to_json()
        return [{**each, "outcome": "failed"} for each in records] if failed else records

    def _judge_one(self, guard: Guard, budgets: Sequence[Budget], place: int) -> dict[str, Any]:
        from pytest_neuralpower.report import terminal  # noqa: PLC0415 - only once used

        prediction = guard.predictions[place]
        verdicts, broken, failures, outcome = [], [], [], "ok" if budgets else "unbounded"
        untrusted = prediction.share(*UNTRUSTED)
        if self.settings.strict and untrusted > self.settings.strict_limit:
            outcome = "untrusted"
            failures.append(
                terminal.strict_text(
                    prediction, untrusted, self.settings.strict_limit, self._again(guard)
                )
            )
        for budget in budgets:
            try:
                verdicts.append(check(budget, prediction, self.settings.judge))
                broken += [] if verdicts[-1].passed else [budget]
            except BudgetError as error:
                outcome = "misused"
                failures.append(str(error))
        if broken:
            outcome = "over"
            text = terminal.failure_text(
                prediction,
                [verdict for verdict in verdicts if not verdict.passed],
                top=self.settings.top,
                again=self._again(guard),
            )
            failures.insert(0, "\n".join([text, *self._advice(guard, place, broken)]))
        return {
            "test": guard.nodeid,
            "platform": prediction.platform,
            "platform_sha256": prediction.platform_sha256,
            "model": prediction.model,
            "batch": prediction.batch,
            "energy_mj": prediction.energy_mj,
            "runtime_ms": prediction.runtime_ms,
            "power_w": prediction.power_w,
            "estimated_power": guard.platform.tiers.get("power") == "estimated",
            "untrusted_share": untrusted,
            "budgets": msgspec.to_builtins(verdicts),
            "outcome": outcome,
            "failure": "\n\n".join(failures),
        }

    def _advice(self, guard: Guard, place: int, broken: Sequence[Budget]) -> list[str]:
        """What to do about a broken budget: about one on energy or runtime, if there is one."""
        if place not in guard.over or not broken:
            return []
        budget = min(broken, key=lambda each: each.quantity == "power")
        from pytest_neuralpower.compress.on_failure import failure_advice  # noqa: PLC0415
        from pytest_neuralpower.model_source import Call  # noqa: PLC0415

        model, args, kwargs = guard.over[place]
        lines = failure_advice(
            model,
            Call(tuple(args), kwargs),
            guard.platform,
            budget,
            platform_name=guard.name,
            root=self.rootpath,
            tests=self._guarded_tests,
        )
        return ["", *(f"  {line}" for line in lines)]

    @cached_property
    def _guarded_tests(self) -> int:
        return max(self.count_guarded(), 1)

    def _again(self, guard: Guard) -> tuple[str, str]:
        """The command that runs one test again, in two parts: an option fits between them."""
        return self.command, shlex.quote(guard.nodeid)


def _breaks(budget: Budget, prediction: Prediction) -> bool:
    """Whether a prediction is over; what cannot be judged is said when the test has run."""
    try:
        return not check(budget, prediction).passed
    except BudgetError:
        return False


def _parse(markers: Sequence[PlacedMarker]) -> list[tuple[int, Budget]]:
    return [
        (distance, parse_marker(mark.name, mark.args, mark.kwargs))
        for distance, mark in markers
        if mark.name in MARKERS
    ]


def _no_platform_text() -> str:
    from pytest_neuralpower.platform.catalog import list_platforms  # noqa: PLC0415 - imports numpy

    names = ", ".join(list_platforms())
    return (
        f"no platform chosen; shipped platforms: {names}; choose one with --np-platform=NAME, "
        "np_platform in the ini file, NEURALPOWER_PLATFORM, or platform= in the marker"
    )


def raise_failures(records: Sequence[Mapping[str, Any]]) -> None:
    """Fail the test with everything that was broken among ``records``."""
    text = "\n\n".join(record["failure"] for record in records if record["failure"])
    outcomes = {record["outcome"] for record in records}
    if "over" in outcomes:
        raise BudgetExceeded(text, pytrace=False)
    if "untrusted" in outcomes:
        raise PredictionUntrusted(text, pytrace=False)
    if "regressed" in outcomes:
        raise BaselineExceeded(text, pytrace=False)
    if "missing" in outcomes:
        raise BaselineMissing(text, pytrace=False)
    if text:
        raise pytest.fail.Exception(text, pytrace=False)


# -- What is added to the records of a test once it is judged: baselines, and what reports show.

TOLERANCE_OPTION = "--np-tolerance"


def check_settings(settings: Settings, config: pytest.Config) -> None:
    """Check what the session was asked to hold against and to write, before any test runs.

    Raises
    ------
    NeuralPowerError
        With one line: a tolerance is misspelt, or a folder or file cannot be written.
    """
    from pytest_neuralpower.guard.baseline import BaselineStore  # noqa: PLC0415
    from pytest_neuralpower.report.formats import check_targets, known_formats  # noqa: PLC0415

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
        from pytest_neuralpower.guard.stale import without_platform  # noqa: PLC0415

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
        from pytest_neuralpower.guard.baseline import BaselineStore  # noqa: PLC0415

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
        from pytest_neuralpower.report.accuracy import platform_facts  # noqa: PLC0415
        from pytest_neuralpower.report.formats import (  # noqa: PLC0415
            details,
            layers_text,
            need_layers,
        )

        known = platform_facts(guard.platform)
        for record, prediction in zip(records, guard.predictions, strict=True):
            record.update(file=place.file, line=place.line, provenance=known, **details(prediction))
            if need_layers(settings.reports):
                record["layers"] = layers_text(prediction)


# -- Hold what a guarded test predicted against its baselines.
#
# What is found is added to the records that travel on the test's report; nothing is written here:
# an
# xdist worker sends the text of a baseline to be written to its controller.


@dataclass(frozen=True, slots=True)
class Held:
    """One guarded test, as far as its baselines are concerned.

    Attributes
    ----------
    test
        Its node id without the platform.
    marked
        Tolerances of its ``regression`` markers that apply to its platform, closest first.
    default
        The session's tolerance.
    update
        What to write: ``""`` nothing, ``"new"`` what is missing, ``"all"``.
    top
        Layers to show; 0 shows all.
    command, nodeid
        How pytest was asked to run, and this test.
    """

    test: str
    nodeid: str
    platform: Platform
    store: BaselineStore
    marked: Sequence[Tolerance]
    default: Tolerance
    update: str
    top: int
    command: str

    @property
    def accept(self) -> str:
        """The command that accepts the test's predictions."""
        return f"{self.command} --np-update-baseline {self.nodeid}"


def hold(held: Held, records: Sequence[dict[str, Any]], predictions: Sequence[Prediction]) -> None:
    """Add to each record its ``baseline``, its ``comparison`` and, if it is dearer, its failure.

    Raises
    ------
    BaselineError
        A baseline is broken or of another platform, or nothing of the tolerance can be judged.
    """
    tolerance = merge((*held.marked, held.default, DEFAULT))
    in_use = bool(held.marked) or held.store.in_use(held.platform.name)
    for number, (record, prediction) in enumerate(zip(records, predictions, strict=True), 1):
        name = baseline_name(held.test, number)
        if tolerance.baseline:
            name = tolerance.baseline if number == 1 else f"{tolerance.baseline}.{number}"
        path = held.store.path(prediction.platform, name)
        found: dict[str, Any] = {"name": name, "path": held.store.shown(path), "status": "none"}
        if held.update == "all" or (held.update == "new" and not path.exists()):
            text = baseline_text(baseline_of(prediction, test=held.test, torch=torch_version()))
            found.update(status="update", text=text)
        elif path.exists():
            _compare(held, record, prediction, name, tolerance)
            found["status"] = "held"
        elif in_use:
            found["status"] = "missing"
            if os.environ.get("CI") or os.environ.get("BUILD_NUMBER"):  # as pytest tells a CI
                _fail(record, "missing", _missing_text(held, found["path"]))
        if found["status"] != "none":
            record["baseline"] = found
            if record["outcome"] == "unbounded":
                record["outcome"] = "ok"


def _compare(
    held: Held,
    record: dict[str, Any],
    prediction: Prediction,
    name: str,
    tolerance: Tolerance,
) -> None:
    expected = baseline_of(prediction, test=held.test, torch=torch_version())
    baseline = held.store.read(prediction.platform, name, expected)
    assert baseline is not None  # the caller has looked
    comparison = compare(baseline, prediction, held.platform)
    _check_judged(comparison, tolerance, prediction.platform)
    comparison = judge(comparison, tolerance)
    found = record["comparison"] = msgspec.to_builtins(comparison)
    if comparison.breaches:
        path = held.store.shown(held.store.path(prediction.platform, name))
        text = regression_text(
            found, platform=prediction.platform, path=path, top=held.top, accept=held.accept
        )
        _fail(record, "regressed", text)


def _check_judged(comparison: Comparison, tolerance: Tolerance, platform: str) -> None:
    if not any(
        tolerance.allowed(quantity, 1.0, layer=layer) is not None
        for quantity in comparison.known()
        for layer in (False, True)
    ):
        known = " and ".join(comparison.known())
        raise BaselineError(
            f"the tolerance says nothing of {known}, which is all that platform "
            f"{platform!r} predicts: give max_percent="
        )


def _missing_text(held: Held, path: str) -> str:
    return (
        f"no baseline yet: {path} is missing, and a CI writes none; on your machine run\n"
        f"  {held.command} --np-update-baseline=new {held.nodeid}\n"
        "and commit the file"
    )


def _fail(record: dict[str, Any], outcome: str, text: str) -> None:
    """A broken budget is the graver outcome; both texts are shown."""
    if record["outcome"] in ("ok", "unbounded"):
        record["outcome"] = outcome
    record["failure"] = "\n\n".join(filter(None, (record["failure"], text)))
