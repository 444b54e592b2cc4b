"""What the user asked of the plugin, merged once: command line > environment > ini > default."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_neuralpower.guard.budget import Judge

PLATFORM_VARIABLE = "NEURALPOWER_PLATFORM"

DEFAULT_TOP = 5
DEFAULT_STRICT_LIMIT_PERCENT = 5.0
DEFAULT_BASELINES = "budgets/baselines"
#: Layers alone: its classes load nothing and call nothing.
DEFAULT_ALLOW_IMPORTS = ["torch.nn"]
JUDGES = ("point", "certain", "safe")
ESTIMATORS = ("best", "neuralpower")


#: Marker -> its arguments and what it is for.
MARKERS = {
    "energy_budget": "(mj=None, j=None, uj=None, platform=None, per='call', samples=None, "
    "tokens=None): upper limit on the predicted energy of one call (or per='sample', 'token') of "
    "each model that the test predicts: gross device energy, or what an analytic platform counts",
    "runtime_budget": "(ms=None, us=None, s=None, platform=None, per='call', samples=None, "
    "tokens=None): upper limit on the predicted runtime of one call (or per='sample', 'token'; of "
    "a generation 'first_token', 'next_token')",
    "power_budget": "(w=None, mw=None, platform=None): upper limit on the predicted mean power of "
    "one call",
    "regression": "(max_percent=None, max_mj=None, max_ms=None, layer_max_percent=None, "
    "layer_max_mj=None, layer_max_ms=None, per='call', baseline=None, platform=None): how much "
    "more than its stored baseline each model that the test predicts may cost",
}


class Settings:
    """What was asked for. A plain class: the making of a dataclass would take longer than all else
    that an idle plugin does.

    Attributes
    ----------
    platforms
        As they were named.
    top
        Layers to show; 0 shows all.
    strict, strict_limit
        Whether predictions must be trusted, and the share of the energy (0..1) that need not be.
    judge
        Which end of an interval is held against a budget.
    estimator
        Which of a platform's estimators predict.
    baselines
        Their folder.
    update_baseline
        ``""``, ``"new"`` or ``"all"``.
    tolerance, reports
        As they were written.
    measure
        Whether each model is also run.
    allow_imports
        Packages whose models budget files may name.
    """

    platforms: tuple[str, ...] = ()
    top: int = DEFAULT_TOP
    strict: bool = False
    strict_limit: float = DEFAULT_STRICT_LIMIT_PERCENT / 100
    judge: Judge = "point"
    estimator: str = "best"
    baselines: Path = Path(DEFAULT_BASELINES)
    update_baseline: str = ""
    tolerance: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()
    measure: bool = False
    allow_imports: tuple[str, ...] = tuple(DEFAULT_ALLOW_IMPORTS)

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)


# What the plugin keeps of a session and of a test.
SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()
GUARD = pytest.StashKey[Any]()  #: a session.Guard: what a test predicts with
#: Every test that was collected, also what hooks and options leave out.
COLLECTED = pytest.StashKey[list[pytest.Item]]()
#: Of a test that has run, as text: one value that survives xdist.
FINDINGS: pytest.StashKey[str] = pytest.StashKey()


def add_options(parser: pytest.Parser) -> None:
    """Register the options and their ini twins; nothing is read yet."""
    group = parser.getgroup("neuralpower", "energy and runtime budgets of models (neuralpower)")
    group.addoption(
        "--np-platform",
        action="append",
        metavar="NAME|PATH",
        help="platform to predict on: a shipped name (`neuralpower platforms`) or a platform file; "
        "repeat it and every guarded test runs once per platform",
    )
    group.addoption(
        "--np-top",
        type=int,
        metavar="N",
        help="show the N most expensive layers of a broken budget "
        f"(default {DEFAULT_TOP}, 0 shows all)",
    )
    group.addoption(
        "--np-strict",
        action="store_true",
        default=None,
        help="fail a guarded test when too much of its energy is uncovered or extrapolated",
    )
    group.addoption(
        "--np-strict-limit",
        type=float,
        metavar="PERCENT",
        help="share of the energy that --np-strict lets be uncovered or extrapolated "
        f"(default {DEFAULT_STRICT_LIMIT_PERCENT:g})",
    )
    group.addoption(
        "--np-judge",
        choices=JUDGES,
        help="what a budget is held against: the predicted point (default); the lower end of its "
        "interval, failing what is certain to be over; or the upper end, passing what is safe",
    )
    group.addoption(
        "--np-measure",
        action="store_true",
        help="on the device itself: run each predicted model, too, and report measured against "
        "predicted",
    )
    group.addoption(
        "--np-estimator",
        choices=ESTIMATORS,
        help="what predicts: each kind's chosen estimator (best, the default), or the polynomials "
        "of the NeuralPower paper for conv, linear and pool (neuralpower)",
    )
    _add_baseline_options(group, parser)
    parser.addini(
        "np_allow_imports",
        "packages that budget files may name; what lies below the root, they always may",
        type="args",
        default=DEFAULT_ALLOW_IMPORTS,
    )
    parser.addini("np_platform", "platforms to predict on, as --np-platform", type="args")
    parser.addini("np_top", "as --np-top", type="int", default=DEFAULT_TOP)
    parser.addini("np_strict", "as --np-strict", type="bool", default=False)
    parser.addini(
        "np_strict_limit",
        "as --np-strict-limit",
        type="float",
        default=DEFAULT_STRICT_LIMIT_PERCENT,
    )
    parser.addini("np_judge", "as --np-judge: point, certain or safe", default="point")
    parser.addini("np_estimator", "as --np-estimator: best or neuralpower", default="best")


def _add_baseline_options(group: pytest.OptionGroup, parser: pytest.Parser) -> None:
    group.addoption(
        "--np-baselines",
        metavar="DIR",
        help=f"folder of baselines (default {DEFAULT_BASELINES}); each platform has its own in it",
    )
    # Two options that look like one: with an optional value it would swallow a path behind it.
    for suffix, stored, what in (
        ("", "all", "write the baseline of every guarded test that passes"),
        ("=new", "new", "write the baselines that are missing, and no other"),
    ):
        group.addoption(
            f"--np-update-baseline{suffix}",
            action="append_const",
            const=stored,
            dest="np_update_baseline",
            help=what,
        )
    group.addoption(
        "--np-tolerance",
        action="append",
        metavar="NAME=NUMBER",
        help="growth over a baseline to accept (default max_percent=1), or max_mj, max_ms, "
        "layer_max_percent, layer_max_mj, layer_max_ms; repeatable",
    )
    group.addoption(
        "--np-report",
        action="append",
        metavar="PATH",
        help="write a report; its suffix says which: .json, .md, .html; or `github`: the step "
        "summary and annotations of a workflow; repeatable",
    )
    parser.addini("np_baselines", "as --np-baselines", default=DEFAULT_BASELINES)
    parser.addini("np_tolerance", "as --np-tolerance", type="args")
    parser.addini("np_report", "as --np-report", type="args")


def refuse_misspelt(args: Iterable[object]) -> None:
    """Refuse a wrong value of ``--np-update-baseline``.

    argparse, which sees two options without a value, can say neither what is allowed nor what is
    near. Of options in the ini file it has the word.

    Raises
    ------
    pytest.UsageError
        With one line.
    """
    for arg in map(str, args):
        option, has_value, value = arg.partition("=")
        if option == "--np-update-baseline" and has_value and value != "new":
            from difflib import get_close_matches  # noqa: PLC0415 - for a message alone

            hint = ", did you mean new?" if get_close_matches(value, ["new"]) else ""
            raise pytest.UsageError(
                f"{arg}: unknown value {value!r}{hint}; allowed: --np-update-baseline, which "
                "writes all baselines, and --np-update-baseline=new, which writes missing ones"
            )


def read_settings(config: pytest.Config) -> Settings:
    """Merge and check.

    Raises
    ------
    pytest.UsageError
        With one line, for a value outside its range.
    """
    platforms = config.getoption("--np-platform")
    if not platforms:
        platforms = re.findall(r"[^,\s]+", os.environ.get(PLATFORM_VARIABLE, ""))
    if not platforms:
        folder = config.inipath.parent if config.inipath else config.rootpath
        platforms = [platform_at(name, folder) for name in _ini(config, "np_platform")]
    top = config.getoption("--np-top")
    top = _ini(config, "np_top") if top is None else top
    if top < 0:
        raise pytest.UsageError(f"--np-top={top}: must be 0 (all layers) or more")
    percent = config.getoption("--np-strict-limit")
    percent = _ini(config, "np_strict_limit") if percent is None else percent
    if not 0 <= percent <= 100:
        raise pytest.UsageError(f"--np-strict-limit={percent:g}: must be between 0 and 100 percent")
    judge = config.getoption("--np-judge") or _ini(config, "np_judge")
    if judge not in JUDGES:
        raise pytest.UsageError(f"np_judge={judge!r}: allowed: {', '.join(JUDGES)}")
    estimator = config.getoption("--np-estimator") or _ini(config, "np_estimator")
    if estimator not in ESTIMATORS:
        raise pytest.UsageError(f"np_estimator={estimator!r}: allowed: {', '.join(ESTIMATORS)}")
    folder = config.inipath.parent if config.inipath else config.rootpath
    baselines = config.getoption("--np-baselines")
    return Settings(
        platforms=tuple(dict.fromkeys(platforms)),
        top=top,
        strict=bool(config.getoption("--np-strict") or _ini(config, "np_strict")),
        strict_limit=percent / 100,
        judge=judge,
        estimator=estimator,
        measure=_measures(config),
        allow_imports=tuple(_ini(config, "np_allow_imports")),
        update_baseline=_update_baseline(config),
        baselines=Path(baselines).absolute()
        if baselines
        else folder / _ini(config, "np_baselines"),
        tolerance=tuple(config.getoption("--np-tolerance") or _ini(config, "np_tolerance")),
        reports=tuple(config.getoption("--np-report") or _ini(config, "np_report")),
    )


def _update_baseline(config: pytest.Config) -> str:
    update = set(config.getoption("np_update_baseline") or ())
    if len(update) > 1:
        raise pytest.UsageError(
            "--np-update-baseline and --np-update-baseline=new: the first writes all baselines, "
            "the second only missing ones; give one of them"
        )
    return next(iter(update), "")


def _measures(config: pytest.Config) -> bool:
    measure = bool(config.getoption("--np-measure"))
    if measure and (config.getoption("numprocesses", None) or hasattr(config, "workerinput")):
        raise pytest.UsageError(
            "--np-measure needs the device for one test at a time: leave out -n (pytest-xdist)"
        )
    return measure


def platform_at(name: str, folder: Path) -> str:
    """A platform written in a file of ``folder``: a name as it is, a path relative to that file."""
    if not name.endswith(".json") and len(Path(name).parts) < 2:
        return name
    return os.path.relpath(folder / name)


def _ini(config: pytest.Config, name: str) -> Any:
    try:
        return config.getini(name)
    except (TypeError, ValueError, pytest.UsageError) as error:
        advice = f"; write {_WRITE[name]}" if name in _WRITE else ""
        raise pytest.UsageError(f"ini option {name}: {error}{advice}") from None


#: How an ini option whose value cannot be read is written.
_WRITE = {
    "np_top": f"a whole number, such as np_top = {DEFAULT_TOP}; 0 shows all layers",
    "np_strict": "np_strict = true or false",
    "np_strict_limit": "a number of percent from 0 to 100, such as np_strict_limit = "
    f"{DEFAULT_STRICT_LIMIT_PERCENT:g}",
}
