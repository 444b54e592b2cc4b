"""What the user asked of a calibration, checked before anything touches the device."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_neuralpower.errors import OptionError
from pytest_neuralpower.measure.meters.choose import METERS

if TYPE_CHECKING:
    from pytest_neuralpower.measure.plan import Preset

__all__ = ["CalibrationOptions", "calibration_options"]

DTYPES: Final = ("float32", "bfloat16", "float16")
MODES: Final = ("eager", "graph")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DEVICE: Final = re.compile(r"cpu|cuda(:\d+)?")

#: Trials after which a run is worth resuming take seconds; less time than this measures nothing.
LEAST_MINUTES: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """One calibration of one device.

    Attributes
    ----------
    name
        Of the platform.
    directory
        Where its recipe, profile, platform and card go.
    device, dtype, mode
        As in :class:`~pytest_neuralpower.measure.bench.Bench`; empty for those of the profile that
        is resumed, else the first GPU (or the CPU where there is none), float32 and eager.
    meter, watts, preset, minutes, resume
        As the command's options; ``minutes`` None for the preset's own time.
    seed
        All that is random in the plan follows from it.
    """

    name: str
    directory: Path
    device: str = ""
    dtype: str = ""
    mode: str = ""
    meter: str = "auto"
    watts: float | None = None
    preset: Preset = "default"
    minutes: float | None = None
    resume: bool = False
    seed: int = 0

    @property
    def profile(self) -> Path:
        return self.directory / "profile.csv"

    @property
    def platform(self) -> Path:
        return self.directory / f"{self.name}.json"

    @property
    def again(self) -> str:
        """The command that goes on where this one stops."""
        out = [] if self.directory == Path(self.name) else ["--out", str(self.directory)]
        return shlex.join(["neuralpower", "calibrate", self.name, *out, "--resume"])


def calibration_options(
    name: str,
    *,
    out: Path | None = None,
    device: str = "",
    dtype: str = "",
    mode: str = "",
    meter: str = "auto",
    watts: float | None = None,
    quick: bool = False,
    thorough: bool = False,
    minutes: float | None = None,
    resume: bool = False,
    seed: int = 0,
) -> CalibrationOptions:
    """Check the command's options.

    Raises
    ------
    OptionError
        One of them is wrong, or two contradict each other; one line says which and what is allowed.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"NAME {name!r}: letters, digits, '.', '_' and '-' only, such as my-gpu; a folder is "
            "given with --out"
        )
    if device and not _DEVICE.fullmatch(device):
        raise OptionError(f"--device {device}: it is cpu, cuda, cuda:N or cuda:all")
    if dtype and dtype not in DTYPES:
        raise OptionError(f"--dtype {dtype}: it is one of {', '.join(DTYPES)}")
    if mode and mode not in MODES:
        raise OptionError(f"--mode {mode}: it is one of {', '.join(MODES)}")
    if meter not in METERS:
        raise OptionError(f"--meter {meter}: it is one of {', '.join(METERS)}")
    if watts is not None and watts <= 0:
        raise OptionError(f"--watts {watts:g}: the power under load in watts, above 0")
    if watts is not None and meter not in ("auto", "none"):
        raise OptionError(
            f"--watts {watts:g} stands in for a meter: leave it out, or drop --meter {meter}"
        )
    if quick and thorough:
        raise OptionError("--quick and --thorough: give one of them")
    if minutes is not None and not LEAST_MINUTES <= minutes <= 24 * 60:
        raise OptionError(f"--minutes {minutes:g}: from {LEAST_MINUTES:g} to {24 * 60}")
    return CalibrationOptions(
        name=name,
        directory=out or Path(name),
        device=device,
        dtype=dtype,
        mode=mode,
        meter="none" if watts is not None else meter,
        watts=watts,
        preset="quick" if quick else "thorough" if thorough else "default",
        minutes=minutes,
        resume=resume,
        seed=seed,
    )
