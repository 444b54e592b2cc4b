"""Predict one call of a model: trace it, then price its layers on a platform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_neuralpower.errors import PlatformError, TraceError
from pytest_neuralpower.platform import AnyPlatform, list_platforms, load_platform

if TYPE_CHECKING:
    from pytest_neuralpower.prediction import Prediction

_TRAINING_NOTE = "the model is in training mode; call .eval() on it to price inference"

__all__ = ["predict", "predict_call"]


def predict(
    model: Any, /, *args: Any, platform: AnyPlatform | str | Path | None = None, **kwargs: Any
) -> Prediction:
    """Predict runtime, power and energy of ``model(*args, **kwargs)`` on a platform.

    The model is traced, never run on the device: its weights and its inputs' values do not
    matter and may live on the meta device.

    Parameters
    ----------
    model
        A ``torch.nn.Module``; one in training mode is priced as it is, with a note.
    *args, **kwargs
        The call's inputs. A model whose own keyword is ``platform`` needs :func:`predict_call`.
    platform
        A loaded platform, a shipped platform's name, or the path of a platform file.

    Returns
    -------
    Prediction
        Energy (mJ), runtime (ms) and mean power (W) of the one call, per layer and in total; None
        is what the platform does not know, and ``energy_basis`` says what the energy is of.

    Raises
    ------
    TraceError
        The model cannot be traced with these inputs.
    PlatformError
        The platform is unknown or its file is broken.
    """
    if platform is None:
        raise PlatformError(
            "predict() needs platform=, a name or a path; "
            f"shipped platforms: {', '.join(list_platforms())}"
        )
    return predict_call(model, args, kwargs, platform=platform)


def predict_call(
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    platform: AnyPlatform | str | Path,
) -> Prediction:
    """:func:`predict` with the call's inputs given as one sequence and one mapping."""
    from pytest_neuralpower.tracing import trace  # noqa: PLC0415 - imports torch

    loaded = load_platform(platform) if isinstance(platform, str | Path) else platform
    traced = trace(model, *args, **kwargs)
    if not traced:
        raise TraceError(
            f"{traced.model} does nothing that costs anything with these inputs: no layer was "
            "recorded; predict the model that does the work"
        )
    if getattr(model, "training", False):
        traced = replace(traced, notes=(*traced.notes, _TRAINING_NOTE))
    return loaded.predict(traced)
