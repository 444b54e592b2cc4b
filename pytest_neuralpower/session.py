"""One guarded pytest session: which platform a test runs on, what it predicted, what it broke.

A `Guard` belongs to one test and is thrown away with it; what outlives the test is a list of
plain records that travels on its report, also from an xdist worker to its controller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pytest_neuralpower.budget import Budget, check, closest_budgets, parse_marker
from pytest_neuralpower.errors import BudgetError
from pytest_neuralpower.prediction import UNTRUSTED

if TYPE_CHECKING:
    from pytest_neuralpower.budget import Verdict
    from pytest_neuralpower.platform import Platform
    from pytest_neuralpower.prediction import Prediction
    from pytest_neuralpower.settings import Settings

Model = TypeVar("Model")


class BudgetExceeded(pytest.fail.Exception):
    """A guarded test is over its budget, or its prediction is not trusted under ``--np-strict``."""

    __module__ = "builtins"  # as pytest's own outcomes: its name alone in the short summary


@dataclass
class Guard:
    """What one test is held against, and what it predicted."""

    nodeid: str
    platform: Platform
    budgets: tuple[Budget, ...]
    predictions: list[Prediction] = field(default_factory=list)


class NeuralPower:
    """The ``neuralpower`` fixture: predicts models on the test's platform.

    Attributes
    ----------
    platform
        The `Platform` this test runs on.
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
        model : torch.nn.Module or callable
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
        """
        from pytest_neuralpower.predictor import predict_call  # noqa: PLC0415 - imports torch

        prediction = predict_call(model, args, kwargs, platform=self.platform)
        self._guard.predictions.append(prediction)
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
    """One pytest process: its settings and its loaded platforms."""

    settings: Settings
    _loaded: dict[str, Platform] = field(default_factory=dict)

    def load(self, name: str) -> Platform:
        """Load a platform once a session; raises PlatformError."""
        if name not in self._loaded:
            from pytest_neuralpower.platform import load_platform  # noqa: PLC0415 - imports numpy

            self._loaded[name] = load_platform(name)
        return self._loaded[name]

    def platforms_for(self, markers: Sequence[pytest.Mark]) -> tuple[str, ...]:
        """Platforms a test runs on: those its markers name, and for the rest the session's.

        A misused marker is passed over here; `guard` reports it.
        """
        named = [mark.kwargs["platform"] for mark in markers if mark.kwargs.get("platform")]
        if len(named) < len(markers) or not markers:
            named += self.settings.platforms
        return tuple(dict.fromkeys(name for name in named if isinstance(name, str)))

    def guard(self, nodeid: str, markers: Sequence[pytest.Mark], parametrised: str | None) -> Guard:
        """Parse a test's markers (closest first) and settle its platform.

        Raises
        ------
        NeuralPowerError
            With one line, for a misused marker, or no single loadable platform to run on.
        """
        budgets = closest_budgets([parse_marker(m.name, m.args, m.kwargs) for m in markers])
        platforms = (parametrised,) if parametrised else self.platforms_for(markers)
        if not platforms:
            raise BudgetError(_no_platform_text())
        if len(platforms) > 1:
            raise BudgetError(
                f"this test runs on {len(platforms)} platforms ({', '.join(platforms)}): take the "
                "`neuralpower` fixture as an argument, so that it runs once for each"
            )
        name = platforms[0]
        # A budget that names no platform is meant for the session's platforms; where the session
        # has chosen none, for whichever platform the other markers name.
        for_default = name in self.settings.platforms or not self.settings.platforms
        applicable = tuple(
            budget
            for budget in budgets
            if budget.platform == name or (budget.platform is None and for_default)
        )
        if budgets and not applicable:
            others = ", ".join(sorted({budget.platform for budget in budgets if budget.platform}))
            raise BudgetError(
                f"this test runs on {name!r}, but its budgets are for {others}: add a budget for "
                f"{name!r} or leave out platform="
            )
        return Guard(nodeid, self.load(name), applicable)

    def judge(self, guard: Guard) -> list[dict[str, Any]]:
        """Hold every prediction of one test against its budgets.

        Returns
        -------
        list of dict
            One record a prediction, of JSON types only; the text of what was broken, if anything,
            is under ``"failure"``.

        Raises
        ------
        BudgetError
            If the test predicted nothing, or a budget needs a power model the platform lacks.
        """
        if guard.budgets and not guard.predictions:
            raise BudgetError(
                "the test has a budget but predicted nothing: call "
                "neuralpower.predict(model, *inputs) in it (`neuralpower` is a fixture)"
            )
        return [self._judge_one(guard, prediction) for prediction in guard.predictions]

    def _judge_one(self, guard: Guard, prediction: Prediction) -> dict[str, Any]:
        from pytest_neuralpower.reports import terminal  # noqa: PLC0415 - only once used

        judge = self.settings.judge
        verdicts = [check(budget, prediction, judge) for budget in guard.budgets]
        broken = [verdict for verdict in verdicts if not verdict.passed]
        untrusted = prediction.share(*UNTRUSTED)
        failures = []
        if broken:
            top = self.settings.top
            failures.append(terminal.failure_text(prediction, broken, top=top, test=guard.nodeid))
        if self.settings.strict and untrusted > self.settings.strict_limit:
            limit = self.settings.strict_limit
            failures.append(terminal.strict_text(prediction, untrusted, limit, test=guard.nodeid))
        return {
            "test": guard.nodeid,
            "platform": prediction.platform,
            "platform_sha256": prediction.platform_sha256,
            "model": prediction.model,
            "batch": prediction.batch,
            "energy_mj": prediction.energy_mj,
            "runtime_ms": prediction.runtime_ms,
            "power_w": prediction.power_w,
            "untrusted_share": untrusted,
            "budgets": [_verdict_record(verdict) for verdict in verdicts],
            "failure": "\n\n".join(failures),
        }


def _verdict_record(verdict: Verdict) -> dict[str, Any]:
    budget = verdict.budget
    return {
        "quantity": budget.quantity,
        "unit": budget.unit,
        "per": budget.per,
        "limit": budget.limit,
        "value": verdict.value,
        "passed": verdict.passed,
        "judge": verdict.judge,
        "interval": None if verdict.interval is None else list(verdict.interval),
        "sure": verdict.sure,
    }


def _no_platform_text() -> str:
    from pytest_neuralpower.platform import list_platforms  # noqa: PLC0415 - imports numpy

    names = ", ".join(list_platforms())
    return (
        f"no platform chosen; shipped platforms: {names}; choose one with --np-platform=NAME, "
        "np_platform in the ini file, or platform= in the marker"
    )


def raise_failures(records: Sequence[Mapping[str, Any]]) -> None:
    """Fail the test with every broken budget among ``records``."""
    failures = [record["failure"] for record in records if record["failure"]]
    if failures:
        raise BudgetExceeded("\n\n".join(failures), pytrace=False)


def properties(records: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """JUnit properties of one test: scalars only, numbered when it predicted more than once."""
    pairs = []
    for number, record in enumerate(records, 1):
        prefix = "neuralpower" if len(records) == 1 else f"neuralpower.{number}"
        pairs += [
            (f"{prefix}.{key}", record[key])
            for key in ("platform", "model", "batch", "energy_mj", "runtime_ms", "power_w")
            if record[key] is not None
        ]
        pairs += [
            (f"{prefix}.{budget['quantity']}_budget_per_{budget['per']}", budget["limit"])
            for budget in record["budgets"]
        ]
    return pairs
