"""Find and load platforms, and predict one call of a model on one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_neuralpower.collector import collector_paused
from pytest_neuralpower.errors import PlatformError, TraceError
from pytest_neuralpower.platform.file import (
    check_name,
    check_texts,
    checked,
    of_file,
    read_json,
)
from pytest_neuralpower.platform.price import (
    BEST,
    NEURALPOWER,
    FittedPlatform,
    check_estimators,
    of_content,
)

if TYPE_CHECKING:
    from pytest_neuralpower.layers import Experts
    from pytest_neuralpower.platform.analytic import EyerissPlatform
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.platform.protocol import Platform


_SHIPPED: Final = Path(__file__).parents[1] / "platforms"


def list_platforms() -> tuple[str, ...]:
    """Names of the shipped platforms, sorted."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.json")))


def load_platform(name: str | Path) -> Platform:
    """Load a shipped platform by name, or any platform file by its path.

    A platform of a file is called as the file is, whatever name its content has.

    Raises
    ------
    PlatformError
        There is no such platform, or its file is broken; one line says what to do.
    """
    path = Path(name)
    if isinstance(name, str) and not (path.suffix == ".json" or len(path.parts) > 1):
        path = _SHIPPED / f"{name}.json"
        if not path.is_file():
            raise PlatformError(_unknown(name))
    with collector_paused():
        data = read_json(path)
        if path.parent == _SHIPPED:  # those that ship are tested
            return _parsed(path, data)
        check_texts(path, data)
        platform = _parsed(path, data)
        if isinstance(platform, FittedPlatform):
            check_estimators(path, platform)
        return _called(platform, path)


def _parsed(path: Path, data: dict[str, object]) -> FittedPlatform | EyerissPlatform:
    if data.get("format") == "pytest-neuralpower eyeriss":
        from pytest_neuralpower.platform.analytic import parse_platform  # noqa: PLC0415 - rare

        return parse_platform(path, data)
    return of_content(path, *checked(path, data))


def _called(platform: FittedPlatform | EyerissPlatform, path: Path) -> Platform:
    """The platform by its file's name: baselines lie in a folder of it, so that a file which calls
    itself as another does not write over those of that one."""
    if platform.name == path.stem:
        return platform
    try:
        check_name(path.stem)
    except ValueError as error:
        raise PlatformError(f"{of_file(path)}: its {error}; rename the file") from None
    if isinstance(platform, FittedPlatform):
        return msgspec.structs.replace(platform, name=path.stem)
    return replace(platform, name=path.stem)


def as_platform(platform: Platform | str | Path) -> Platform:
    """A platform as it is; a name or a path loaded by :func:`load_platform`.

    Raises
    ------
    PlatformError
        Also for what is neither.
    """
    if isinstance(platform, str | Path):
        return load_platform(platform)
    if not callable(getattr(platform, "predict", None)) or isinstance(platform, type):
        raise PlatformError(
            f"platform={platform!r}: give a name, such as 'titanx', the path of a platform file, "
            "or what load_platform returns"
        )
    return platform


def priced_by(platform: Platform, estimator: str) -> Platform:
    """The platform with the estimators pricing that ``estimator`` says.

    Parameters
    ----------
    platform
        Any platform.
    estimator
        ``best``, each family's chosen estimator, or ``neuralpower``, the NeuralPower paper's
        polynomials for the families that have them (conv, linear, pool).

    Raises
    ------
    PlatformError
        There is no such choice, or the platform has none of the paper's estimators.
    """
    if estimator == BEST:
        return platform
    if estimator != NEURALPOWER:
        raise PlatformError(f"estimator={estimator!r}: allowed: {BEST}, {NEURALPOWER}")
    if not isinstance(platform, FittedPlatform):
        raise PlatformError(
            f"platform {platform.name} has no fitted estimators: predict with estimator={BEST}, or "
            "name a fitted platform (`neuralpower platforms`)"
        )
    return platform.by_neuralpower()


def load_fitted(name: str | Path) -> FittedPlatform:
    """:func:`load_platform` where only one whose estimators were fitted will do.

    Raises
    ------
    PlatformError
        Also for an analytic platform.
    """
    platform = load_platform(name)
    if not isinstance(platform, FittedPlatform):
        raise PlatformError(
            f"platform {platform.name} is analytic, without fitted estimators; name a fitted one "
            "(`neuralpower platforms`)"
        )
    return platform


def load_array(name: str | Path) -> EyerissPlatform:
    """:func:`load_platform` where only an Eyeriss-like array will do.

    Raises
    ------
    PlatformError
        Also for a fitted platform.
    """
    from pytest_neuralpower.platform.analytic import EyerissPlatform  # noqa: PLC0415 - rare

    platform = load_platform(name)
    if not isinstance(platform, EyerissPlatform):
        raise PlatformError(
            f"--platform {name}: it is not an Eyeriss-like array; give eyeriss, eyeriss-accelergy "
            "or the path of a file that describes one"
        )
    return platform


def _unknown(name: str) -> str:
    """What to do about a name that no platform has: mostly it is of a device that none is of."""
    if "," in name and not name.endswith(".json"):
        return f"{name!r} is no platform: give one at a time, and repeat the option for several"
    near = difflib.get_close_matches(name.lower(), list_platforms(), n=3, cutoff=0.5)
    nearest = f"nearest: {', '.join(near)}; " if near else ""
    like = f" --like {near[0]}" if near else ""
    return (
        f"unknown platform {name!r}; {nearest}all: `neuralpower platforms`; of another device: by "
        f"its datasheet `neuralpower platforms new {name}{like}`, on it `neuralpower calibrate "
        f"{name}`; or give the path of a platform file (.json)"
    )


# -- Prediction.

_TRAINING_NOTE = "the model is in training mode; call .eval() on it to price inference"


def predict(
    model: Any,
    /,
    *args: Any,
    platform: Platform | str | Path | None = None,
    estimator: str = BEST,
    experts: Experts = "uniform",
    **kwargs: Any,
) -> Prediction:
    """Predict runtime, power and energy of ``model(*args, **kwargs)`` on a platform.

    The model is traced, never run on the device: its weights and its inputs' values do not
    matter and may live on the meta device.

    Parameters
    ----------
    model
        A ``torch.nn.Module``; one in training mode is priced as it is, with a note.
    *args, **kwargs
        The call's inputs. A model whose own keyword is ``platform``, ``estimator`` or ``experts``
        needs :func:`predict_call`.
    platform
        A loaded platform, a shipped platform's name, or the path of a platform file.
    estimator
        ``best`` (default): each family's chosen estimator. ``neuralpower``: the polynomials of the
        NeuralPower paper, fitted to the same rows as the paper does, for conv, linear and pool
        where these were measured; the notes say what they priced. Such a prediction has another
        ``platform_sha256`` and no intervals.
    experts
        Distinct experts that the call's tokens choose, in a mixture that ``grouped_mm`` computes:
        ``uniform`` (default), as many as are expected if all are equally likely; or a number of
        them, or a share (a float up to 1).

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
        The platform is unknown, its file is broken, or it has no such estimators.
    """
    if platform is None:
        raise PlatformError(
            "predict() needs platform=, a name or a path; "
            f"shipped platforms: {', '.join(list_platforms())}"
        )
    return predict_call(
        model, args, kwargs, platform=priced_by(as_platform(platform), estimator), experts=experts
    )


def predict_call(
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    platform: Platform | str | Path,
    experts: Experts = "uniform",
) -> Prediction:
    """:func:`predict` with the call's inputs given as one sequence and one mapping."""
    with collector_paused():
        from pytest_neuralpower.tracing import trace  # noqa: PLC0415 - imports torch

    loaded = as_platform(platform)
    traced = trace(model, *args, **kwargs).with_experts(experts)
    if not traced:
        raise TraceError(
            f"{traced.model} does nothing that costs anything with these inputs: no layer was "
            "recorded; predict the model that does the work"
        )
    if getattr(model, "training", False):
        traced = replace(traced, notes=(*traced.notes, _TRAINING_NOTE))
    return loaded.predict(traced)
