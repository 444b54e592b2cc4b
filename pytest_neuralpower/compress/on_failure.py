"""What a failing budget test says next: a few lines of advice, and the commands to type.

Whatever goes wrong here is one line: it must never hide the failure it belongs to.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import yaml

from pytest_neuralpower.compress.advice import advise_groups
from pytest_neuralpower.compress.find_groups import find_channel_groups
from pytest_neuralpower.compress.width_prices import LayerQuota
from pytest_neuralpower.errors import NeuralPowerError
from pytest_neuralpower.model_source import Origin, input_texts, origin_of
from pytest_neuralpower.text import printable, shell_word
from pytest_neuralpower.tracing.inputs import batch_size, token_count
from pytest_neuralpower.units import SYMBOLS, UNITS

if TYPE_CHECKING:
    from pytest_neuralpower.guard.budget import Budget
    from pytest_neuralpower.layers import Trace
    from pytest_neuralpower.model_source import Call
    from pytest_neuralpower.platform.protocol import Platform

_MOST_LINES: Final = 5

#: Layers to trace and price for one test at most, and for all guarded tests of a session: each has
#: its share whatever the others do, so that a report does not depend on their order.
_TEST_EFFORT: Final = 50_000
_SESSION_EFFORT: Final = 500_000
#: With less the search would not get beyond its start.
_LEAST_EFFORT: Final = 5_000


def failure_advice(
    model: Any,
    call: Call,
    platform: Platform,
    budget: Budget,
    *,
    platform_name: str,
    root: Path,
    tests: int,
    traced: Trace | None = None,
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
    traced
        The layers that the broken prediction was made of; traced again if left out.
    """
    if budget.quantity == "power":
        return [
            "advice: none for power: smaller models take less energy and less time alike, so that "
            "power hardly changes; cap the device's power, or set an energy budget"
        ]
    effort = min(_TEST_EFFORT, _SESSION_EFFORT // tests)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a user's warnings were shown when the test ran
        if effort < _LEAST_EFFORT:
            others = tests - 1
            lines = [f"advice: none in a session of {others} other guarded tests: run this alone"]
        else:
            lines = _advice(model, call, platform, budget, LayerQuota(effort), traced=traced)
        try:
            words = _words(model, call, root)
        except Exception:
            words = [_UNKNOWN_MODEL, "--input", "SHAPE"]
        words += ["--platform", shell_word(platform_name)]
        estimator = getattr(platform, "estimator", "best")
        if estimator != "best":
            words += ["--estimator", estimator]
        return [*lines, *_commands(words, call, budget)]


def _advice(
    model: Any,
    call: Call,
    platform: Platform,
    budget: Budget,
    effort: LayerQuota,
    *,
    traced: Trace | None,
) -> list[str]:
    for name, module in model.named_modules():
        # torch-pruning follows every step of one, up to minutes, and narrows none of its widths.
        if isinstance(module, torch.nn.RNNBase):
            what = f"{type(module).__name__} ({printable(name) or 'the root'})"
            return [f"advice: none, widths of {what} cannot be told apart; change them by hand"]
    try:
        groups = find_channel_groups(model, call.args, call.kwargs, effort=effort, traced=traced)
        advised = advise_groups(groups, platform, budget, effort=effort)
        lines = advised.lines(_MOST_LINES)
    except Exception as error:
        kind = "" if isinstance(error, NeuralPowerError) else f"{type(error).__name__}: "
        reason = next(iter(str(error).splitlines()), "")
        return [f"advice: none, {kind}{printable(reason)}"]
    return ["advice, predicted and not measured:", *(f"  {line}" for line in lines)]


def _commands(words: list[str], call: Call, budget: Budget) -> list[str]:
    common = " ".join(words)
    kwargs = dict(call.kwargs)
    limit = budget.limit * budget.parts(
        batch_size(call.args, kwargs), token_count(call.args, kwargs)
    )
    symbol = SYMBOLS[budget.unit].replace("µ", "u")
    shown = f"{limit / UNITS[budget.quantity][budget.unit]:.6g}"
    own = "mj" if budget.quantity == "energy" else "ms"
    model = "MODEL is file.py:function that builds it, " if words[0] == _UNKNOWN_MODEL else ""
    return [
        f"all advice: neuralpower advise {common} --{own} {limit:.6g}",
        f"prune to it: neuralpower prune {common} --budget {shown}{symbol} "
        "--calibration inputs.pt --plan plan.json --weights pruned.pt",
        f'where {model}inputs.pt is real inputs in one batch: torch.save(inputs, "inputs.pt")',
    ]


# -- The command that repeats a test's prediction in a shell.

#: What stands where the command cannot be told.
_UNKNOWN_MODEL: Final = "MODEL"


def _words(model: torch.nn.Module, call: Call, root: Path) -> list[str]:
    """``MODEL --arg name=value --input 1,3,224,224``, each word quoted for a shell.

    ``MODEL`` stays a placeholder for a model that was not built by ``neuralpower.build``, a budget
    file, or its class without arguments.
    """
    origin = origin_of(model) or _of_its_class(model)
    words = [_UNKNOWN_MODEL]
    if origin is not None:
        path, arguments = _import_path(origin.factory, root), _arguments(origin)
        if path is not None and arguments is not None:
            words = [path, *arguments]
    for text in input_texts(call, unknown="SHAPE"):
        words += ["--input", text]
    return [shell_word(word) for word in words]


def _of_its_class(model: torch.nn.Module) -> Origin | None:
    """The model's class, where building it without arguments gives the same shapes."""

    def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in model.state_dict().items()}

    kind = type(model)
    try:
        with torch.device("meta"):
            again = kind()
    except Exception:  # it needs arguments, or values: somebody else knows how it is built
        return None
    same = shapes(again) == shapes(model) != {}
    return Origin(kind, (), {}) if same else None


def _import_path(factory: Callable[..., Any], root: Path) -> str | None:
    """``package.module:name``, or ``path/to/file.py:name`` where no package has it."""
    name = getattr(factory, "__qualname__", "")
    module = sys.modules.get(getattr(factory, "__module__", None) or "")
    if not name or "<" in name or module is None:
        return None
    spec = getattr(module, "__spec__", None)
    file = Path(getattr(module, "__file__", None) or "")
    if spec is not None and spec.parent:  # in a package
        return f"{module.__name__}:{name}"
    if file.suffix != ".py":
        return None
    return f"{file.relative_to(root) if file.is_relative_to(root) else file}:{name}"


def _arguments(origin: Origin) -> list[str] | None:
    """``--arg name=value`` for each argument; None where one cannot be written down."""
    try:
        bound = inspect.signature(origin.factory).bind(*origin.args, **origin.kwargs)
    except (TypeError, ValueError):
        return None
    arguments = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and name in arguments:
            return None
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    words = []
    for name, value in arguments.items():
        text = _yaml(value)
        if text is None:
            return None
        words += ["--arg", f"{name}={text}"]
    return words


def _yaml(value: Any) -> str | None:
    """``value`` in one line of YAML that reads back as it; None where there is none."""
    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    except yaml.YAMLError:
        return None
    text = text.removesuffix("...\n").strip()
    return text if "\n" not in text and yaml.safe_load(text) == value else None
