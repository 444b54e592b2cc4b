"""What a failing budget test says of the remedy: a few lines of advice and the commands to type.

Whatever goes wrong here is one line: it must never hide the failure it belongs to.
"""

from __future__ import annotations

import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_neuralpower.errors import NeuralPowerError
from pytest_neuralpower.units import SYMBOLS, UNITS

if TYPE_CHECKING:
    from pytest_neuralpower.budget import Budget
    from pytest_neuralpower.platform import AnyPlatform
    from pytest_neuralpower.remedy.calls import Call

__all__ = ["MOST_LINES", "failure_advice"]

MOST_LINES: Final = 5

#: Layers to trace and price for one test at most, and for all guarded tests of a session: each has
#: its share whatever the others do, so that a report does not depend on their order.
_TEST_EFFORT: Final = 50_000
_SESSION_EFFORT: Final = 500_000
#: With less the search would not get beyond its start.
_LEAST_EFFORT: Final = 5_000


#: What is said of a power budget.
_POWER: Final = (
    "advice: none for power: smaller models take less energy and less time alike, so that power "
    "hardly changes; cap the device's power, or set an energy budget"
)


def failure_advice(
    model: Any,
    call: Call,
    platform: AnyPlatform,
    budget: Budget,
    *,
    platform_name: str,
    root: Path,
    tests: int,
) -> list[str]:
    """Lines that follow the text of a broken budget.

    Parameters
    ----------
    budget
        The limit that is broken; for one on power it is said that widths do not help.
    platform_name
        As the session was asked for it.
    root
        Where paths in commands start.
    tests
        How many tests of the session are guarded.
    """
    if budget.quantity == "power":
        return [_POWER]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a user's warnings were shown when the test ran
        lines = _advice(model, call, platform, budget, tests)
        return [*lines, *_commands(model, call, budget, platform_name, root)]


def _advice(model: Any, call: Call, platform: AnyPlatform, budget: Budget, tests: int) -> list[str]:
    effort = min(_TEST_EFFORT, _SESSION_EFFORT // tests)
    if effort < _LEAST_EFFORT:
        return [f"advice: none beside {tests - 1} other guarded tests: run this one alone"]
    try:
        from pytest_neuralpower.remedy.advice import advise  # noqa: PLC0415 - imports torch
        from pytest_neuralpower.reports.advice import advice_lines  # noqa: PLC0415

        advised = advise(model, call, platform, budget, effort=effort)
        return [
            "advice, predicted and not measured:",
            *(f"  {line}" for line in advice_lines(advised, MOST_LINES)),
        ]
    except Exception as error:
        kind = "" if isinstance(error, NeuralPowerError) else f"{type(error).__name__}: "
        reason = next(iter(str(error).splitlines()), "")
        return [f"advice: none, {kind}{reason}"]


def _commands(model: Any, call: Call, budget: Budget, platform_name: str, root: Path) -> list[str]:
    from pytest_neuralpower.remedy.commands import model_words  # noqa: PLC0415 - imports torch

    try:
        words = model_words(model, call, root)
    except Exception:
        words = ["MODEL", "--input", "SHAPE"]
    common = " ".join([*words, "--platform", shlex.quote(platform_name)])
    limit = budget.limit
    if budget.per == "sample":
        limit *= budget.samples or _samples(call)
    unit = budget.unit
    symbol = SYMBOLS[unit].replace("µ", "u")
    shown = f"{limit / UNITS[budget.quantity][unit]:.6g}"
    own = "mj" if budget.quantity == "energy" else "ms"
    return [
        f"all advice: neuralpower advise {common} --{own} {limit:.6g}",
        f"prune to it: neuralpower prune {common} --budget {shown}{symbol} "
        "--calibration inputs.pt --plan plan.json --weights pruned.pt",
        f"where {_placeholders(words[0])}",
    ]


def _placeholders(model: str) -> str:
    """What the user has to supply for the commands."""
    inputs = 'inputs.pt is real inputs in one batch: torch.save(inputs, "inputs.pt")'
    return f"MODEL is file.py:function that builds it, {inputs}" if model == "MODEL" else inputs


def _samples(call: Call) -> int:
    from pytest_neuralpower.tracing.inputs import batch_size, input_tensors  # noqa: PLC0415

    return batch_size(input_tensors((call.args, dict(call.kwargs))))
