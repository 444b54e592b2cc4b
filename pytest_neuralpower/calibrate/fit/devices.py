"""The device file: what devices can at most do, by dtype, each figure with its source."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.platform.file import check_name

_FILE: Final = Path(__file__).parents[2] / "platform" / "devices.yaml"


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One device, as its maker describes it.

    Attributes
    ----------
    device, source
        Its name, and where its figures are from.
    peaks_gflops
        Operations (GFLOP/s) by dtype, dense.
    bandwidth_gbs, multiprocessors, l2_mb, limit_w, process_nm
        As in the ``hardware`` of a platform.
    idle_w
        Power at rest; None where it is not known.
    """

    device: str
    source: str
    peaks_gflops: Mapping[str, int | float]  # a whole number stays one in the platform file
    bandwidth_gbs: int | float
    multiprocessors: int
    l2_mb: int | float
    limit_w: int | float
    process_nm: int | float
    idle_w: int | float | None = None

    def hardware(self, dtype: str) -> dict[str, int | float]:
        """A platform's ``hardware``; ``peak_gflops`` is that of ``dtype``, or of float32 where the
        device has no units for it. Of a GPU whose ``idle_w`` is not known it is taken for a twelfth
        of its limit."""
        at_rest = self.idle_w or round(self.limit_w / 12)
        return {
            "peak_gflops": self.peaks_gflops.get(dtype, self.peaks_gflops["float32"]),
            "bandwidth_gbs": self.bandwidth_gbs,
            "multiprocessors": self.multiprocessors,
            "l2_mb": self.l2_mb,
            "process_nm": self.process_nm,
            "limit_w": self.limit_w,
            **({} if self.multiprocessors == 1 else {"idle_w": at_rest}),
        }


@cache
def read_devices() -> Mapping[str, Device]:
    """Every device of the device file, by name."""
    text = _FILE.read_text(encoding="utf-8")
    return msgspec.convert(yaml.safe_load(text), dict[str, Device])


def find_device(name: str) -> Device:
    """The device of this name.

    Raises
    ------
    ProfileError
        There is none; one line names those there are.
    """
    known = read_devices()
    if (own := _of_platform(name)) is not None:
        return known[own]
    raise ProfileError(
        f"unknown device {name!r}{_nearest(name)}; datasheets are known of {', '.join(known)}"
    )


def _of_platform(name: str) -> str | None:
    """The device of this name, spelled in any way, or that which a platform is named after."""
    plain = {"".join(filter(str.isalnum, known)): known for known in read_devices()}
    wanted = "".join(filter(str.isalnum, name.lower()))
    for ending in ("compile", "bf16", "fp32", "int8"):
        wanted = wanted.removesuffix(ending)
    return plain.get(wanted) or plain.get(wanted.removeprefix("cpu"))


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), read_devices(), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def described(
    name: str,
    *,
    like: str | None,
    peaks_tflops: Mapping[str, float | None],
    **figures: float | None,
) -> Device:
    """A device by its figures; what is not given is that of another.

    Parameters
    ----------
    name
        Of the device. One of the device file needs no figure, and those given replace its own.
    like
        Device of the device file whose figures are taken; None for ``name`` itself, if it is there.
    peaks_tflops
        Operations, 10^12/s, by dtype; None of what is not known.
    **figures
        ``bandwidth_gbs``, ``multiprocessors``, ``l2_mb``, ``limit_w``, ``process_nm``; None of what
        is not known.

    Raises
    ------
    ProfileError
        A figure is neither given nor taken from a device, or no file can have this name; one line
        says which.
    """
    try:
        check_name(name)
    except ValueError as error:
        raise ProfileError(f"device {name!r}: its {error}; give a folder in --out") from None
    known: dict[str, Any] = {key: value for key, value in figures.items() if value is not None}
    peaks = {key: 1e3 * value for key, value in peaks_tflops.items() if value is not None}
    base = find_device(like or name) if like or name in read_devices() else None
    limit = known.get("limit_w", base.limit_w if base else math.inf)
    if (idle := known.get("idle_w", 0)) >= limit:
        raise ProfileError(
            f"device {name!r}: at rest {idle:g} W, which must be below its board power, {limit:g} W"
        )
    shown = ", ".join(f"{key} {value:g}" for key, value in [*peaks.items(), *known.items()])
    if base is not None:
        source = f"{base.source}; with {shown}" if shown else base.source
        device = base.device if name in read_devices() else f"{name}, like {base.device}"
        # A peak that is given says what the others of its chip are, in proportion; so do its
        # multiprocessors.
        ratios = [peaks[key] / base.peaks_gflops[key] for key in peaks if key in base.peaks_gflops]
        units = known.get("multiprocessors", base.multiprocessors) / base.multiprocessors
        scale = ratios[0] if ratios else units
        others = {key: value * scale for key, value in base.peaks_gflops.items()}
        if "limit_w" in known:  # at rest another board draws something else
            known.setdefault("idle_w", None)
        return msgspec.structs.replace(
            base, device=device, source=source, peaks_gflops={**others, **peaks}, **known
        )
    needed = ("bandwidth_gbs", "multiprocessors", "l2_mb", "limit_w", "process_nm")
    missing = [key for key in needed if key not in known]
    if "float32" not in peaks:
        missing.insert(0, "peak float32")
    if missing:
        raise ProfileError(
            f"device {name!r}{_nearest(name)}: {missing[0]} is not known; give it, or --like "
            f"DEVICE, one of {', '.join(read_devices())}"
        )
    return msgspec.convert(
        {"device": name, "source": f"given: {shown}", "peaks_gflops": peaks, **known}, Device
    )
