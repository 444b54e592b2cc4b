"""One guarded pytest session: which platform a test runs on, what it predicted, what it broke.

A `Guard` belongs to one test and is thrown away with it; what outlives the test are its findings,
which travel on its report, also from an xdist worker to its controller.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, cast

import msgspec
import pytest
from msgspec import UNSET, UnsetType

from pytest_neuralpower.errors import (
    BaselineError,
    BudgetError,
    ImportPathError,
    PlatformError,
)
from pytest_neuralpower.files import read_text
from pytest_neuralpower.guard.baseline import (
    Baseline,
    BaselineStore,
    baseline_name,
    baseline_of,
    baseline_text,
    may_be_named,
    other_name,
    stored_test,
    torch_version,
    without_platform,
)
from pytest_neuralpower.guard.budget import MARKERS, Budget, check, closest_budgets, parse_marker
from pytest_neuralpower.guard.compare import compare, judge
from pytest_neuralpower.guard.finding import (
    BaselineState,
    CallComparison,
    Finding,
    findings_to_text,
)
from pytest_neuralpower.guard.tolerance import (
    DEFAULT,
    Tolerance,
    merge,
    parse_texts,
    parse_tolerance,
)
from pytest_neuralpower.layer_codec import layers_json, rounded
from pytest_neuralpower.layers import Trace
from pytest_neuralpower.model_source import Call
from pytest_neuralpower.platform.intervals import Interval
from pytest_neuralpower.platform.prediction import UNTRUSTED
from pytest_neuralpower.plugin.options import COLLECTED, FINDINGS, GUARD, SETTINGS, platform_at
from pytest_neuralpower.text import escaped, printable, shell_word

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.measure.network import Live
    from pytest_neuralpower.guard.budget import Judge, Verdict
    from pytest_neuralpower.guard.compare import Comparison
    from pytest_neuralpower.guard.finding import Outcome
    from pytest_neuralpower.platform.generation import Generation
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.platform.protocol import Platform
    from pytest_neuralpower.plugin.options import Settings

Model = TypeVar("Model")

#: Budget and regression markers, each with how far out it stands: 0 on the function, more on class
#: and module.
Markers: TypeAlias = Sequence[tuple[int, pytest.Mark]]

TOLERANCE_OPTION: Final = "--np-tolerance"


# pytest exports the class of its failures only as an attribute of `fail`.
class BudgetExceeded(pytest.fail.Exception):  # type: ignore[misc, name-defined]
    """A prediction of a guarded test is over its budget."""

    __module__ = "builtins"  # as pytest's own outcomes: its name alone in the short summary


class PredictionUntrusted(pytest.fail.Exception):  # type: ignore[misc, name-defined]
    """Too much of a prediction has no measurements to support it, under ``--np-strict``."""

    __module__ = "builtins"


class BaselineExceeded(pytest.fail.Exception):  # type: ignore[misc, name-defined]
    """A prediction of a guarded test costs more than its stored baseline allows."""

    __module__ = "builtins"


class BaselineMissing(pytest.fail.Exception):  # type: ignore[misc, name-defined]
    """A CI has no baseline to hold a prediction against, and writes none."""

    __module__ = "builtins"


#: Outcome of a finding -> what its test fails with, gravest first.
_FAILURES: Final[Mapping[str, Any]] = {
    "over": BudgetExceeded,
    "untrusted": PredictionUntrusted,
    "regressed": BaselineExceeded,
    "missing": BaselineMissing,
}


def raise_failures(findings: Sequence[Finding]) -> None:
    """Fail the test with everything that was broken."""
    text = "\n\n".join(finding.failure for finding in findings if finding.failure)
    if text:
        outcomes = {finding.outcome for finding in findings}
        kinds = [kind for outcome, kind in _FAILURES.items() if outcome in outcomes]
        kind = kinds[0] if kinds else pytest.fail.Exception
        failure: Any = kind(text, pytrace=False)
        failure.headline = next(finding.headline for finding in findings if finding.failure)
        raise failure


class Checked(NamedTuple):
    """Budgets held against one prediction; of those that cannot be judged, why."""

    verdicts: Sequence[Verdict]
    broken: Sequence[Budget]
    misused: Sequence[str]


class Predicted(NamedTuple):
    """One prediction of a test: how the budgets of its start judge it, the model and its call if it
    is over one of them (others are let go), and what was measured under ``--np-measure``.

    Of a generation there are three: the ``generation`` itself, which budgets judge, and two calls
    ``of_generation``, of the prompt and of the last step, which baselines hold.
    """

    prediction: Prediction
    checked: Checked
    call: tuple[Any, Call] | None = None
    measured: CallComparison | UnsetType = UNSET
    role: Literal["call", "generation", "of_generation"] = "call"


class Guard:
    """Where one test runs, and what it predicted.

    Attributes
    ----------
    nodeid, test
        The test's node id, and that without its platform where it runs on several.
    name, platform
        The platform as it was asked for, and loaded.
    budgets
        As the test started.
    """

    def __init__(
        self,
        session: GuardSession,
        nodeid: str,
        *,
        test: str,
        name: str,
        platform: Platform,
        budgets: tuple[Budget, ...],
    ) -> None:
        self.session = session
        self.nodeid = nodeid
        self.test = test
        self.name = name
        self.platform = platform
        self.budgets = budgets
        self.predicted: list[Predicted] = []

    def add(self, prediction: Prediction, model: Any, call: Call) -> None:
        """Note a prediction, and measure the call if the session does that."""
        checked = _checked(self.budgets, prediction, self.session.settings.judge)
        over = any(verdict.value > verdict.limit for verdict in checked.verdicts)
        measured: CallComparison | UnsetType = UNSET
        if self.session.live is not None:
            measured = self.session.live.measure(
                model, call.args, call.kwargs, platform=self.platform, prediction=prediction
            )
        self.predicted.append(
            Predicted(prediction, checked, (model, call) if over else None, measured)
        )

    def add_generation(self, generation: Generation) -> None:
        """Note a generation: its budgets are of the whole, its baselines of its two calls."""
        checked = _checked(self.budgets, generation, self.session.settings.judge)
        self.predicted.append(Predicted(generation, checked, role="generation"))
        parts = [(generation.prefill, f"prompt of {generation.prompt_tokens:,}")]
        if generation.decode is not None:
            cached = generation.decode.cached[-1]
            parts.append((generation.decode.last, f"step after {cached:,}"))
        for prediction, name in parts:
            named = dataclasses.replace(prediction, model=f"{prediction.model}, {name}")
            self.predicted.append(Predicted(named, Checked((), (), ()), role="of_generation"))


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
        self._guard.add(prediction, model, Call(args, kwargs))
        return prediction

    def generate(
        self, model: Any, /, *, prompt: Any, new_tokens: int, **options: Any
    ) -> Generation:
        """Predict what generating text costs, and hold it against the budgets.

        Budgets are of the whole, or ``per="token"`` (all new tokens of the batch), ``"sample"``,
        ``"first_token"`` or ``"next_token"``; baselines of the prompt's call and of the last step.

        Parameters
        ----------
        model, prompt, new_tokens, **options
            As :func:`pytest_neuralpower.generate` takes them, but for the platform and the
            estimator, which are the test's.

        Raises
        ------
        TraceError, PlatformError, OptionError
            As :func:`pytest_neuralpower.generate` does.
        """
        from pytest_neuralpower.platform.serving import generate  # noqa: PLC0415 - imports numpy

        generation = generate(
            model, prompt=prompt, new_tokens=new_tokens, platform=self.platform, **options
        )
        self._guard.add_generation(generation)
        return generation

    @staticmethod
    def build(factory: Callable[..., Model], /, *args: Any, **kwargs: Any) -> Model:
        """Build ``factory(*args, **kwargs)`` on torch's meta device: no weights, 5-60x faster.

        A factory that needs real values while it builds is built on the CPU instead.

        Raises
        ------
        ImportPathError
            ``factory`` is a model, or does not take these arguments.
        """
        from torch.nn import Module  # noqa: PLC0415 - slow

        from pytest_neuralpower.model_source import build, check_arguments  # noqa: PLC0415

        if isinstance(factory, Module):
            raise ImportPathError(
                "neuralpower.build needs what builds the model, a class or a function; "
                f"{type(factory).__name__} is built already: predict it as it is"
            )
        check_arguments(factory, args, kwargs)
        return build(factory, *args, **kwargs)


class GuardSession:
    """One pytest process: its settings and its loaded platforms.

    Parameters
    ----------
    rootpath
        Where paths in markers start.
    command
        How pytest was asked to run, as far as a failure's advice must repeat it.
    provide
        Asks plugins for a platform by its ``name=``.
    is_guarded
        Tells guarded tests from others.
    """

    def __init__(
        self,
        settings: Settings,
        rootpath: Path = Path(),
        command: str = "pytest",
        provide: Callable[..., Platform | Path | str | None] = lambda name: None,  # noqa: ARG005
        is_guarded: Callable[[pytest.Item], bool] = lambda item: True,  # noqa: ARG005
    ) -> None:
        self.settings = settings
        self.rootpath = rootpath
        self.command = command
        self.store = BaselineStore(settings.baselines, rootpath)
        self._provide = provide
        self._is_guarded = is_guarded
        self._items: Sequence[pytest.Item] = ()
        #: Those and what was left out of them.
        self._collected: list[pytest.Item] = []
        self._loaded: dict[str, Platform] = {}
        #: By its identity: a marker and what it says. Parametrised tests share their markers.
        self._parsed: dict[int, tuple[pytest.Mark, Budget | Tolerance]] = {}
        #: Platform -> whether it has baselines, and what reports say of it.
        self._in_use: dict[str, bool] = {}
        self._provenance: dict[str, Mapping[str, str]] = {}

    @classmethod
    def of(cls, config: pytest.Config, is_guarded: Callable[[pytest.Item], bool]) -> GuardSession:
        """The session of a pytest process."""
        return cls(
            config.stash[SETTINGS],
            config.rootpath,
            pytest_command(config),
            partial(config.hook.pytest_neuralpower_platform, config=config),
            is_guarded,
        )

    def prepare(self, config: pytest.Config) -> None:
        """Load what the session was asked for, and check what it is to write, before any test runs.

        Raises
        ------
        NeuralPowerError
            With one line: a platform cannot be loaded or measured on, a tolerance is misspelt, or a
            folder or file cannot be written.
        """
        settings = self.settings
        for name in settings.platforms:
            platform = self.load(name)
            if self.live is not None:
                self.live.device(platform)
        parse_texts(settings.tolerance, TOLERANCE_OPTION)
        if not hasattr(config, "workerinput"):  # an xdist worker writes nothing
            if settings.reports:
                from pytest_neuralpower.report.formats import (  # noqa: PLC0415
                    check_targets,
                    known_formats,
                )

                check_targets(settings.reports, known_formats(config))
            if settings.update_baseline:
                self.store.check_writable()

    def load(self, name: str) -> Platform:
        """Load a platform once a session; raises PlatformError."""
        if name not in self._loaded:
            from pytest_neuralpower.platform.catalog import (  # noqa: PLC0415 - imports numpy
                load_platform,
                priced_by,
            )

            found = self._provide(name=name)
            if found is None or isinstance(found, str | Path):
                found = load_platform(found or name)
            loaded = priced_by(found, self.settings.estimator)
            for other, known in self._loaded.items():
                if known.name == loaded.name and known.sha256 != loaded.sha256:
                    raise PlatformError(
                        f"platforms {other} and {name} are both called {loaded.name!r} and would "
                        "share their baselines: rename one of the files"
                    )
            self._loaded[name] = loaded
        return self._loaded[name]

    @cached_property
    def live(self) -> Live | None:
        """What measures on the device, under ``--np-measure``."""
        if not self.settings.measure:
            return None
        from pytest_neuralpower.calibrate.measure.network import Live  # noqa: PLC0415 - imports torch

        return Live()

    def platforms_for(self, markers: Markers) -> tuple[str, ...]:
        """Platforms a test runs on: those its markers name, and for the rest the session's.

        A misused marker is passed over here; `guard` reports it.
        """
        given = [mark.kwargs.get("platform") for _, mark in markers]
        named = [platform_at(name, self.rootpath) for name in given if name and type(name) is str]
        if len(named) < len(markers) or not markers:
            named += self.settings.platforms
        return tuple(dict.fromkeys(named))

    def guard(
        self, nodeid: str, markers: Markers, parametrised: str | None, *, test: str | None = None
    ) -> Guard:
        """Settle a test's platform, and check its markers before it runs.

        Parameters
        ----------
        parametrised
            The platform, where the test is parametrised with it.
        test
            The node id without the platform, where it has one.

        Raises
        ------
        NeuralPowerError
            With one line, for a misused marker, or no single loadable platform to run on.
        """
        parsed = [(distance, self._parse(mark)) for distance, mark in _ordered(markers)]
        budgets = [(far, each) for far, each in parsed if isinstance(each, Budget)]
        platforms = (parametrised,) if parametrised else self.platforms_for(markers)
        if not platforms:
            raise BudgetError(_no_platform_text())
        if len(platforms) > 1:
            raise BudgetError(
                f"this test runs on {len(platforms)} platforms ({', '.join(platforms)}): take the "
                "`neuralpower` fixture as an argument, so that it runs once for each, or choose one"
            )
        name = platforms[0]
        applicable = [pair for pair in budgets if self._applies(pair[1], name)]
        if budgets and not applicable:
            others = ", ".join(sorted({each.platform for _, each in budgets if each.platform}))
            raise BudgetError(
                f"this test runs on {name!r}, but its budgets are for {others}: add a budget for "
                f"{name!r} or leave out platform="
            )
        return Guard(
            self,
            nodeid,
            test=test or nodeid,
            name=name,
            platform=self.load(name),
            budgets=closest_budgets(applicable),
        )

    def guard_item(self, item: pytest.Item, markers: Markers) -> Guard:
        """:meth:`guard` of a collected test."""
        self._items = item.session.items  # all of them, on an xdist worker, too
        self._collected = item.config.stash[COLLECTED]
        platform, several = _parametrised(item)
        nodeid = _node_id(item)
        test = without_platform(nodeid, platform) if platform and several else None
        return self.guard(nodeid, markers, platform, test=test)

    def _parse(self, mark: pytest.Mark) -> Budget | Tolerance:
        found = self._parsed.get(id(mark))
        if found is None:
            parse = parse_marker if mark.name in MARKERS else _parse_regression
            found = self._parsed[id(mark)] = (mark, parse(mark.name, mark.args, mark.kwargs))
        return found[1]

    def _applies(self, said: Budget | Tolerance, name: str) -> bool:
        """Whether a marker is for a platform.

        A budget that names none is meant for the session's platforms; where the session has chosen
        none, for whichever platform the other markers name. A tolerance that names none is for all.
        """
        if said.platform is not None:
            return platform_at(said.platform, self.rootpath) == name
        chosen = self.settings.platforms
        return isinstance(said, Tolerance) or name in chosen or not chosen

    def judge(
        self,
        guard: Guard,
        markers: Markers,
        *,
        file: str = "",
        line: int | None = None,
        failed: bool = False,
    ) -> tuple[Finding, ...]:
        """Hold every prediction of one test against its budgets and baselines, once it has run.

        Nothing is written here: the text of a baseline to be written is part of its finding.

        Parameters
        ----------
        markers
            As they are now: a test or a fixture may have added one.
        file, line
            Where the test is; the line from 1, None if unknown.
        failed
            The test failed by itself: its predictions are listed, and nothing is demanded.

        Returns
        -------
        tuple of Finding
            One a prediction.

        Raises
        ------
        BudgetError
            If the test has a budget and predicted nothing.
        BaselineError
            A marker is misused, or a baseline is broken, of another platform, or nothing of the
            tolerance can be judged.
        """
        parsed = [(distance, self._parse(mark)) for distance, mark in _ordered(markers)]
        applying = [(far, each) for far, each in parsed if self._applies(each, guard.name)]
        budgets = closest_budgets((far, each) for far, each in applying if type(each) is Budget)
        if markers and not guard.predicted and not failed:
            what = "a budget" if budgets else "a regression marker"
            if budgets or any(type(each) is Tolerance for _, each in parsed):
                raise BudgetError(
                    f"the test has {what} but predicted nothing: call "
                    "neuralpower.predict(model, *inputs) in it (`neuralpower` is a fixture)"
                )
        checks = [
            each.checked
            if budgets == guard.budgets or each.role == "of_generation"
            else _checked(budgets, each.prediction, self.settings.judge)
            for each in guard.predicted
        ]
        applying.sort(key=lambda pair: pair[0])
        marked = [each for _, each in applying if type(each) is Tolerance]
        tolerance: Tolerance | None = None
        if (marked or any(each.verdicts for each in checks)) and not failed:
            tolerance = merge([*marked, self._tolerance]) if marked else self._tolerance
        return tuple(
            self._finding(
                *(guard, number, predicted, checked, tolerance),
                demanded=bool(marked),
                file=file,
                line=line,
                outcome="failed" if failed else None,
            )
            for number, (predicted, checked) in enumerate(
                zip(guard.predicted, checks, strict=True), 1
            )
        )

    def judge_item(self, item: pytest.Item, markers: Markers, *, failed: bool) -> None:
        """Judge a test that has run, keep its findings for its report, and fail it with them.

        Parameters
        ----------
        failed
            The test failed by itself: that is what it is reported with.
        """
        if GUARD not in item.stash:  # a marker was added while the test ran
            item.stash[GUARD] = self.guard_item(item, markers)
        guard = item.stash[GUARD]
        file, line, _ = item.location
        findings = self.judge(
            guard,
            markers,
            file=escaped(file),
            line=None if line is None else line + 1,
            failed=failed,
        )
        if not findings:
            return
        from pytest_neuralpower.report.ci import properties  # noqa: PLC0415

        item.stash[FINDINGS] = findings_to_text(findings)
        item.user_properties.extend(properties(findings))
        seen = item.ihook.pytest_neuralpower_prediction
        if seen.get_hookimpls():
            for predicted, finding in zip(guard.predicted, findings, strict=True):
                record = finding.record()
                del record["name"]
                seen(item=item, prediction=predicted.prediction, record=record)
        if not failed:
            raise_failures(findings)

    def _finding(
        self,
        guard: Guard,
        number: int,
        predicted: Predicted,
        checked: Checked,
        tolerance: Tolerance | None,
        *,
        demanded: bool,
        **known: Any,
    ) -> Finding:
        """What one prediction comes to; without a tolerance no baseline is looked at."""
        prediction = predicted.prediction
        outcome, failures = self._outcome(guard, predicted, checked)
        name = baseline_name(without_platform(guard.nodeid, prediction.platform), number)
        state: BaselineState | UnsetType = UNSET
        comparison: Comparison | UnsetType = UNSET
        if tolerance is not None and predicted.role != "generation":
            state, comparison, broken = self._baseline(
                guard, prediction, number, tolerance, demanded=demanded
            )
            if state is not UNSET:
                name = state.name
                if outcome == "unbounded":
                    outcome = "ok"
                if broken:
                    failures.append(broken)
                    worse: Outcome = "missing" if state.status == "missing" else "regressed"
                    outcome = worse if outcome == "ok" else outcome  # a budget is graver
        if known["outcome"] is None:
            known["outcome"] = outcome
        flagged = any(layer.flags for layer in prediction.layers)
        return Finding(
            name=name,
            test=printable(guard.nodeid),
            budgets=tuple(checked.verdicts),
            failure="\n\n".join(failures),
            measured=predicted.measured,
            comparison=comparison,
            baseline=state,
            platform=prediction.platform,
            platform_sha256=prediction.platform_sha256,
            model=prediction.model,
            batch=prediction.batch,
            energy_mj=prediction.energy_mj,
            runtime_ms=prediction.runtime_ms,
            power_w=prediction.power_w,
            estimated_power=guard.platform.tiers.get("power") == "estimated",
            untrusted_share=prediction.share(*UNTRUSTED) if flagged else 0.0,
            provenance=self._provenance_of(guard),
            energy_interval_mj=_rounded(prediction.energy_interval_mj),
            runtime_interval_ms=_rounded(prediction.runtime_interval_ms),
            power_interval_w=_rounded(prediction.power_interval_w),
            energy_basis=prediction.energy_basis,
            host=prediction.host or UNSET,
            estimator=prediction.estimator,
            notes=prediction.notes,
            layers=msgspec.Raw(layers_json(prediction.layers)) if self._with_layers else UNSET,
            **known,
        )

    def _provenance_of(self, guard: Guard) -> Mapping[str, str]:
        if guard.name not in self._provenance:
            from pytest_neuralpower.report.accuracy import platform_facts  # noqa: PLC0415

            self._provenance[guard.name] = platform_facts(guard.platform)
        return self._provenance[guard.name]

    @cached_property
    def _with_layers(self) -> bool:
        if not self.settings.reports:
            return False
        from pytest_neuralpower.report.formats import need_layers  # noqa: PLC0415

        return need_layers(self.settings.reports)

    def _outcome(
        self, guard: Guard, predicted: Predicted, checked: Checked
    ) -> tuple[Outcome, list[str]]:
        """What the budgets make of a prediction, and the texts of what is broken."""
        outcome: Outcome = "ok" if checked.verdicts else "unbounded"
        failures = list[str]()
        prediction, settings = predicted.prediction, self.settings
        again = self.command, shell_word(guard.nodeid)  # an option fits between them
        if settings.strict and prediction.share(*UNTRUSTED) > settings.strict_limit:
            from pytest_neuralpower.report.terminal import strict_text  # noqa: PLC0415

            outcome, share = "untrusted", prediction.share(*UNTRUSTED)
            failures.append(strict_text(prediction, share, settings.strict_limit, again))
        if checked.misused:
            outcome = "misused"
            failures += checked.misused
        if checked.broken:
            from pytest_neuralpower.report.terminal import failure_text  # noqa: PLC0415

            outcome = "over"
            broken = [verdict for verdict in checked.verdicts if not verdict.passed]
            text = failure_text(prediction, broken, top=settings.top, again=again)
            failures.insert(0, "\n".join([text, *self._advice(guard, predicted, checked.broken)]))
        return outcome, failures

    def _advice(self, guard: Guard, predicted: Predicted, broken: Sequence[Budget]) -> list[str]:
        """What to do about a broken budget: about one on energy or runtime, if there is one."""
        if predicted.call is None:
            return []
        from pytest_neuralpower.compress.on_failure import failure_advice  # noqa: PLC0415

        prediction, (model, call) = predicted.prediction, predicted.call
        layers = tuple(each.layer for each in prediction.layers)
        lines = failure_advice(
            model,
            call,
            guard.platform,
            min(broken, key=lambda each: each.quantity == "power"),
            platform_name=guard.name,
            root=self.rootpath,
            tests=self._guarded_tests,
            traced=Trace(
                layers,
                prediction.route,
                notes=prediction.notes,
                batch=prediction.batch,
                model=prediction.model,
                tokens=prediction.tokens,
            ),
        )
        return ["", *(f"  {line}" for line in lines)]

    @cached_property
    def _guarded_tests(self) -> int:
        return max(sum(map(self._is_guarded, self._items)), 1)

    @cached_property
    def _tolerance(self) -> Tolerance:
        return merge([parse_texts(self.settings.tolerance, TOLERANCE_OPTION), DEFAULT])

    def _baseline(
        self,
        guard: Guard,
        prediction: Prediction,
        number: int,
        tolerance: Tolerance,
        *,
        demanded: bool,
    ) -> tuple[BaselineState | UnsetType, Comparison | UnsetType, str]:
        """Hold a prediction against its baseline: its state, the comparison, and what is broken."""
        update, store = self.settings.update_baseline, self.store
        given = tolerance.baseline
        name, found = self._own_baseline(guard, prediction, number, given)
        path = store.path(prediction.platform, name)
        shown, exists = store.shown(path), path.exists()
        if update == "all" or (update == "new" and not exists):
            text = baseline_text(baseline_of(prediction, test=guard.test, torch=torch_version()))
            other = UNSET if given else other_name(guard.test, number)
            return BaselineState(name, shown, "update", text, other), UNSET, ""
        again = f"{self.command} --np-update-baseline", shell_word(guard.nodeid)
        if not exists:
            platform = guard.platform.name
            if platform not in self._in_use:
                self._in_use[platform] = store.in_use(platform)
            if not (demanded or self._in_use[platform]):
                return UNSET, UNSET, ""
            state = BaselineState(name, shown, "missing")
            if not (os.environ.get("CI") or os.environ.get("BUILD_NUMBER")):  # as pytest tells a CI
                return state, UNSET, ""
            text = (
                f"no baseline yet: {shown} is missing, and a CI writes none; on your machine run\n"
                f"  {again[0]}=new {again[1]}\n"
                "and commit the file"
            )
            return state, UNSET, text
        baseline = found or store.read(prediction.platform, name, prediction)
        comparison = compare(baseline, prediction, guard.platform)
        _check_tolerance(comparison, tolerance, prediction.platform)
        comparison = judge(comparison, tolerance)
        state = BaselineState(name, shown, "held")
        if not comparison.breaches:
            return state, comparison, ""
        from pytest_neuralpower.report.compare import regression_text  # noqa: PLC0415

        text = regression_text(
            comparison,
            platform=prediction.platform,
            path=shown,
            top=self.settings.top,
            accept=" ".join(again),
        )
        return state, comparison, text

    def _own_baseline(
        self, guard: Guard, prediction: Prediction, number: int, given: str | None
    ) -> tuple[str, Baseline | None]:
        """The name of a test's own baseline, and the file where it was read on the way.

        Raises
        ------
        BaselineError
            The file is of another test.
        """
        store, platform = self.store, prediction.platform
        name = baseline_name(guard.test, number)
        if given:
            name = given if number == 1 else f"{given}.{number}"
        path = store.path(platform, name)
        other = other_name(guard.test, number)
        if not path.exists():
            return (other if store.path(platform, other).exists() and not given else name), None
        if self.settings.update_baseline == "all":
            found, test = None, stored_test(path)
        else:
            found = store.read(platform, name, prediction)
            test = found.test
        if test in (None, guard.test):
            return name, found
        assert test is not None  # said above
        if given:
            if self._is_there(test, guard.test):
                raise BaselineError(
                    f"baseline {store.shown(path)} is of two tests, {printable(test)} and "
                    f"{printable(guard.test)}: give one another name, regression(baseline=...)"
                )
            return name, found  # its test was renamed
        if may_be_named(name, test):
            return other, None
        if self.settings.update_baseline == "all":
            return name, None
        raise BaselineError(
            f"baseline {store.shown(path)} is of test {printable(test)}, not of "
            f"{printable(guard.test)}: restore the file, or write it again with "
            "--np-update-baseline"
        )

    def _is_there(self, test: str, other: str) -> bool:
        """Whether a test still is where its baseline says, as far as its file tells."""
        file, _, names = test.partition("::")
        function = names.partition("[")[0]
        if (file, function) == (other.partition("::")[0], _function(other)):
            return any(_node_id(item) == test for item in self._collected)
        try:
            text = read_text(self.rootpath / file, file=file, error=BaselineError)
        except BaselineError:
            return False
        return re.search(rf"\b{re.escape(function.rpartition('::')[2])}\b", text) is not None


def _function(test: str) -> str:
    return test.partition("::")[2].partition("[")[0]


def pytest_command(config: pytest.Config) -> str:
    """How pytest was asked to run, as far as advice must repeat it."""
    given = [f"--np-platform={name}" for name in config.getoption("--np-platform") or ()]
    for option in ("--np-judge", "--np-estimator"):
        if value := config.getoption(option):
            given.append(f"{option}={value}")
    return " ".join(map(shell_word, ["pytest", *given]))


def _node_id(item: pytest.Item) -> str:
    """As it is without pytest-xdist, whose ``--dist=loadgroup`` appends ``@group`` to it."""
    if getattr(item.config.option, "loadgroup", False) and item.get_closest_marker("xdist_group"):
        return item.nodeid.rpartition("@")[0] or item.nodeid
    return item.nodeid


def _parametrised(item: pytest.Item) -> tuple[str | None, bool]:
    """The platform that a test is parametrised with, and whether its node id has it."""
    callspec = getattr(item, "callspec", None)
    if callspec:
        platform = callspec.params.get("neuralpower_platform")
        return platform, platform is not None
    # Of a budget file.
    return getattr(item, "neuralpower_platform", None), getattr(item, "several_platforms", False)


def _ordered(markers: Markers) -> list[tuple[int, pytest.Mark]]:
    """Budgets first: of several mistakes theirs is told."""
    return sorted(markers, key=lambda pair: pair[1].name not in MARKERS)


def _parse_regression(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tolerance:
    return parse_tolerance(args, kwargs, name)


def _checked(budgets: Sequence[Budget], prediction: Prediction, judge: Judge) -> Checked:
    verdicts, broken, misused = [], [], []
    for budget in budgets:
        try:
            verdict = check(budget, prediction, judge)
        except BudgetError as error:
            misused.append(str(error))
            continue
        verdicts.append(verdict)
        broken += [] if verdict.passed else [budget]
    return Checked(verdicts, broken, misused)


def _rounded(interval: Interval | None) -> Interval | None:
    """An interval to as many digits as reports have."""
    if interval is None:
        return None
    return Interval._make(cast("Iterable[float]", map(rounded, interval)))


def _check_tolerance(comparison: Comparison, tolerance: Tolerance, platform: str) -> None:
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


def _no_platform_text() -> str:
    from pytest_neuralpower.platform.catalog import list_platforms  # noqa: PLC0415 - imports numpy

    names = ", ".join(list_platforms())
    return (
        f"no platform chosen; shipped platforms: {names}; choose one with --np-platform=NAME, "
        "np_platform in the ini file, NEURALPOWER_PLATFORM, or platform= in the marker"
    )
