"""How much more than its baseline a model may cost."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, cast

from pytest_neuralpower.errors import BaselineError
from pytest_neuralpower.units import is_finite

REGRESSION: Final = "regression"


_WHOLE: Final = ("max_percent", "max_mj", "max_ms")
_LAYER: Final = ("layer_max_percent", "layer_max_mj", "layer_max_ms")
_OTHERS: Final = ("per", "baseline", "platform")
#: What an option can say; the others belong to one test.
_IN_TEXT: Final = (*_WHOLE, *_LAYER, "per")
_PER: Final = ("call", "sample")

ComparedQuantity = Literal["energy", "runtime"]


class Tolerance(NamedTuple):
    """Growth that is accepted: of the call in all, and of each layer that is in both.

    As with ``pytest.approx``, growth is too much when it is beyond both the relative and the
    absolute tolerance given; a quantity for which neither is given is not judged. ``None`` of all
    three of the call or of a layer means: whatever is said further out.
    """

    max_percent: float | None = None
    max_mj: float | None = None
    max_ms: float | None = None
    layer_max_percent: float | None = None
    layer_max_mj: float | None = None
    layer_max_ms: float | None = None
    per: Literal["call", "sample"] | None = None
    baseline: str | None = None
    platform: str | None = None

    def allowed(
        self, quantity: ComparedQuantity, base: float, *, layer: bool = False
    ) -> float | None:
        """Growth allowed over ``base`` (mJ or ms); None where the quantity is not judged."""
        percent = self.layer_max_percent if layer else self.max_percent
        if quantity == "energy":
            absolute = self.layer_max_mj if layer else self.max_mj
        else:
            absolute = self.layer_max_ms if layer else self.max_ms
        found = [] if percent is None else [base * percent / 100]
        return max([*found, *([] if absolute is None else [absolute])], default=None)


#: Predictions are deterministic, so this leaves room for other versions of torch alone.
DEFAULT: Final = Tolerance(max_percent=1.0)


def parse_tolerance(args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str) -> Tolerance:
    """Tolerance written as the arguments of a marker, or the like in a file.

    Raises
    ------
    BaselineError
        With one line that names ``where``, the offending argument and what is allowed.
    """
    allowed = (*_WHOLE, *_LAYER, *_OTHERS)
    if args:
        raise BaselineError(
            f"{where}: positional argument {args[0]!r}; write {REGRESSION}(max_percent=2)"
        )
    for key, value in kwargs.items():
        if key not in allowed:
            raise _unknown(key, repr(value), allowed, where)
        if key in _OTHERS:
            _check_other(key, value, where)
        elif not is_finite(value) or value < 0:
            raise BaselineError(f"{where}: {key}={value!r} must be a number from 0")
    return Tolerance(**cast("Any", dict(kwargs)))


def _unknown(key: str, value: str, allowed: Sequence[str], where: str) -> BaselineError:
    close = difflib.get_close_matches(key, allowed, n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    return BaselineError(
        f"{where}: unknown argument{hint}: {key}={value}; allowed: {', '.join(allowed)}"
    )


def _check_other(key: str, value: Any, where: str) -> None:
    if key == "per":
        if value not in _PER:
            raise BaselineError(f"{where}: per={value!r}; allowed: 'call', 'sample'")
    elif type(value) is not str or not value:
        raise BaselineError(f"{where}: {key}={value!r} must be a name")
    elif key == "baseline" and ("/" in value or "\\" in value or value.startswith(".")):
        raise BaselineError(
            f"{where}: baseline={value!r} must be a plain name: it becomes NAME.yaml in the folder "
            "of the platform"
        )


def parse_texts(texts: Iterable[str], where: str) -> Tolerance:
    """Tolerance written as ``max_percent=2``, ``layer_max_mj=0.5``: the option and the ini file.

    Raises
    ------
    BaselineError
        As :func:`parse_tolerance`.
    """
    found: dict[str, str | float] = {}
    for text in texts:
        for part in filter(None, text.replace(",", " ").split()):
            key, separator, value = part.partition("=")
            if not separator:
                raise BaselineError(f"{where}: {part!r}: write NAME=NUMBER, such as max_percent=2")
            if key in ("baseline", "platform"):
                raise BaselineError(f"{where}: {key} belongs to one test: say it in its marker")
            if key not in _IN_TEXT:
                raise _unknown(key, value, _IN_TEXT, where)
            try:
                found[key] = value if key == "per" else float(value)
            except ValueError:
                raise BaselineError(f"{where}: {key}={value!r} must be a number from 0") from None
    return parse_tolerance((), found, where)


def merge(tolerances: Iterable[Tolerance]) -> Tolerance:
    """What holds of several tolerances, the closest first.

    Those of the call and those of a layer are each taken as a whole from the closest that says any:
    a relative one from further out never loosens an absolute one close by.
    """
    merged = Tolerance()
    for each in tolerances:
        for group in (_WHOLE, _LAYER, *((name,) for name in _OTHERS)):
            if all(getattr(merged, name) is None for name in group):
                merged = merged._replace(**{name: getattr(each, name) for name in group})
    return merged
