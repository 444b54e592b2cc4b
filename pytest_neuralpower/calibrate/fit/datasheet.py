"""A platform of a device whose layers nobody measured: its datasheet, how other devices run layers,
and perhaps how long whole networks took."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_neuralpower.calibrate.fit.calls import NEEDED, fit_calls, read_all_calls, table
from pytest_neuralpower.calibrate.fit.devices import Device, find_device
from pytest_neuralpower.calibrate.fit.fit import platform_of
from pytest_neuralpower.calibrate.fit.power_prior import transferred_power
from pytest_neuralpower.calibrate.fit.prior import power_prior_for, priors_for
from pytest_neuralpower.calibrate.fit.recipe import Recipe, Source
from pytest_neuralpower.calibrate.fit.uncertainty import with_intervals
from pytest_neuralpower.errors import PlatformError
from pytest_neuralpower.estimators.physics import Ceilings
from pytest_neuralpower.layers import ITEMSIZE
from pytest_neuralpower.platform.prediction import Host

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_neuralpower.platform.fusion import Fused
    from pytest_neuralpower.platform.price import FittedPlatform

#: What an operation of eager PyTorch takes a host: 25 to 55 us were seen.
EAGER: Final = Host(layer_ms=0.038, factor=1.5)


class _Mode(NamedTuple):
    """How calls run: in words, what the host takes, and what is joined to one kernel."""

    words: str
    host: Host | None = None
    fused: Fused = ""


#: Those that a table of calls may name.
MODES: Final[Mapping[str, _Mode]] = {
    "eager": _Mode("PyTorch eager (calls wait for the host's launches), without TF32", EAGER),
    "compile": _Mode("torch.compile (inductor), launches hidden", fused="pointwise"),
    "engine": _Mode(
        "an engine that folds norms and activations into convolutions, launches hidden",
        fused="folded",
    ),
}


def datasheet_platform(
    name: str,
    *,
    device: Device | None = None,
    dtype: str = "float32",
    mode: str = "",
    networks: Path | None = None,
    data_root: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> FittedPlatform:
    """The platform of a device in the device file, without a measured layer of it.

    Every family is priced as other devices run it, and flagged ``inferred``; a GPU draws what
    others do, unless calls were metered.

    Parameters
    ----------
    name
        Of the device, such as ``titan-rtx``; of the platform, where ``device`` is given.
    device
        What it can at most do; None (default) for what the device file says.
    dtype
        Floating dtype of its layers, float32 by default; half precision is priced as other boards'
        tensor cores run it.
    mode
        One of :data:`MODES`; empty (default) for what ``networks`` says in its column ``mode``,
        else ``eager``.
    networks
        Table of whole calls that were timed on it (see
        :func:`~pytest_neuralpower.calibrate.fit.calls.run_calls`); None (default) for none.
    data_root
        Folder of the public tables, to fit the prior anew to them and to the recipes in
        ``calibration`` here, without the device's own rows; None (default) to take the prior that
        ships.

    Raises
    ------
    ProfileError
        There is no such device; one line names those there are.
    PlatformError
        The device has no units for ``dtype``, or there is no such mode.
    ProfileError, FitError
        The table of calls cannot be read, or has too few to hold any out.
    """
    known = device or find_device(name)
    if dtype not in known.peaks_gflops or dtype not in ITEMSIZE:
        raise PlatformError(
            f"{known.device} computes in {', '.join(known.peaks_gflops)}, not in {dtype!r}"
        )
    calls = () if networks is None else (_runs(networks),)
    how = _mode(mode, networks)
    recipe = Recipe(
        name=name if device else name_of(name, dtype),
        device=known.device,
        dtype=dtype,
        mode=how.words,
        tiers={"runtime": "measured" if calls else "datasheet"},
        hardware=known.hardware(dtype),
        peaks_gflops=known.peaks_gflops,
        host=how.host,
        fused=how.fused,
        sources=(Source(title=f"datasheet: {known.source}"),),
        calls=calls,
        notes=("No layer was measured on this device.",),
        folder=Path() if networks is None else networks.parent,
    )
    priors = priors_for(
        known.device,
        recipe.hardware,
        dtype,
        calibration=Path("calibration"),
        data_root=data_root,
    )
    measured, recipe = read_all_calls(recipe, data_root, progress)
    platform = platform_of(recipe, priors, {})
    if Ceilings.of(recipe.hardware).gpu:
        prior = power_prior_for(known.device, calibration=Path("calibration"), data_root=data_root)
        platform = transferred_power(platform, prior)
    platform = with_intervals(platform, recipe, {})
    return fit_calls(platform, measured, progress) if measured else platform


def name_of(device: str, dtype: str) -> str:
    """Of the platform of a device in the device file."""
    return device if dtype == "float32" else f"{device}-{dtype}"


def _runs(table: Path) -> Source:
    options = {"reader": "runs"}
    return Source(title=f"calls of {table.name}", reader="runs", path=table.name, options=options)


def _mode(asked: str, networks: Path | None) -> _Mode:
    """What was asked for, else what the first call of the table says, else eager."""
    name, where = asked, "--mode"
    if not asked and networks is not None:
        record = next((record for _, record in table(networks, NEEDED)), {})
        name, where = record.get("mode") or "", f"{networks}, column mode:"
    if (name or "eager") not in MODES:
        raise PlatformError(f"{where} {name!r} is not one of {', '.join(MODES)}")
    return MODES[name or "eager"]
