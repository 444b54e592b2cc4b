"""Units of energy, runtime and power: what a budget may be written in, and how values are shown.

Inside the package energy is in millijoules, runtime in milliseconds and power in watts
(so that energy = power x runtime without a factor).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, TypeGuard

Quantity: TypeAlias = Literal["energy", "runtime", "power"]

#: Keyword of a budget -> factor to the package's own unit.
UNITS: Final[Mapping[Quantity, Mapping[str, float]]] = {
    "energy": {"mj": 1.0, "j": 1e3, "uj": 1e-3},
    "runtime": {"ms": 1.0, "s": 1e3, "us": 1e-3},
    "power": {"w": 1.0, "mw": 1e-3},
}

_LARGEST: Final = sys.float_info.max

# Largest unit first: (symbol, factor to the package's own unit).
_DISPLAY: Final[Mapping[Quantity, tuple[tuple[str, float], ...]]] = {
    "energy": (("kJ", 1e6), ("J", 1e3), ("mJ", 1.0), ("µJ", 1e-3)),
    "runtime": (("s", 1e3), ("ms", 1.0), ("µs", 1e-3)),
    "power": (("kW", 1e3), ("W", 1.0), ("mW", 1e-3)),
}


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether the value is a number that a float can hold, and no boolean."""
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST  # type: ignore[operator]


def show(quantity: Quantity, value: float) -> str:
    """``value`` (mJ, ms or W) with three significant digits in the unit that reads best.

    >>> show("energy", 5934.0)
    '5.93 J'
    """
    scales = _DISPLAY[quantity]
    for symbol, factor in scales:
        scaled = value / factor
        # 999.6 would round to "1e+03": the next larger unit shows it as 1.00.
        if abs(scaled) >= 0.9995 or (symbol, factor) == scales[-1]:
            break
    digits = 0 if abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
    if 0 < abs(scaled) < 0.01:
        return f"{scaled:.2g} {symbol}"
    return f"{scaled:.{digits}f} {symbol}"


#: Keyword of a budget -> how its unit is written.
SYMBOLS: Final[Mapping[str, str]] = {
    "mj": "mJ", "j": "J", "uj": "µJ", "ms": "ms", "s": "s", "us": "µs", "w": "W", "mw": "mW",
}  # fmt: skip


def show_in(quantity: Quantity, value: float, unit: str) -> str:
    """``value`` (mJ, ms or W) in the unit that the user wrote, with three significant digits.

    >>> show_in("energy", 5934.0, "mj")
    '5,934 mJ'
    """
    scaled = value / UNITS[quantity][unit]
    digits = 0 if abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
    text = f"{scaled:.3g}" if 0 < abs(scaled) < 1 else f"{scaled:,.{digits}f}"
    return f"{text} {SYMBOLS[unit]}"


def show_percent(share: float) -> str:
    """A share of 0..1 as a percentage; a small one is never shown as a bare 0."""
    percent = 100.0 * share
    if 0 < percent < 0.1:
        return "<0.1%"
    return f"{percent:.1f}%" if percent < 99.95 else f"{percent:.0f}%"
