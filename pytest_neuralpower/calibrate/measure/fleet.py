"""Many devices at once: all GPUs of a machine, or a fleet through joblib's engines.

Each worker measures one device into a folder of its own. On one machine it writes there directly,
so that nothing is lost when it dies; from another machine its profile comes back as text.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from filelock import FileLock, Timeout

from pytest_neuralpower.calibrate.fit.fit import fit_command
from pytest_neuralpower.calibrate.measure.device import cuda_devices
from pytest_neuralpower.calibrate.measure.meters.nvml import cuda_uuid
from pytest_neuralpower.calibrate.measure.profile_writer import only_writer
from pytest_neuralpower.calibrate.measure.progress import Progress
from pytest_neuralpower.calibrate.measure.run import dump_recipe, measure_profile
from pytest_neuralpower.errors import (
    CalibrationStopped,
    MissingExtraError,
    NeuralPowerError,
    OptionError,
)

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.measure.plan import CalibrationOptions
    from pytest_neuralpower.platform.price import FittedPlatform


@dataclass(frozen=True, slots=True)
class _FleetPart:
    """What one worker sends back: its files by name, or why it has none."""

    number: int
    host: str
    files: dict[str, str]
    error: str = ""


def calibrate_fleet(
    options: CalibrationOptions,
    *,
    all_gpus: bool,
    backend: str,
    workers: int,
    per_device: bool,
    progress: Progress,
) -> list[tuple[Path, FittedPlatform]]:
    """Measure many devices and fit one platform of all their rows, or one each.

    Parameters
    ----------
    all_gpus
        Every GPU of this machine (of every worker's machine, with dask or ray), one a worker.
    backend
        An engine of joblib. ``dask`` and ``ray`` use the cluster that ``DASK_SCHEDULER_ADDRESS`` or
        ``RAY_ADDRESS`` names, else own workers here.
    workers
        Devices to measure; 0 for as many as this machine has GPUs. A CPU's worker has one core.
    per_device
        Fit a platform for each device instead.

    Returns
    -------
    list of (Path, FittedPlatform)
        What was written.

    Raises
    ------
    OptionError
        The options contradict each other, or there is no device to measure.
    MissingExtraError
        The engine is not installed.
    CalibrationStopped
        Some device could not be measured; what the others measured is saved.
    """
    count = workers or len(cuda_devices())
    if not count:
        raise OptionError(
            "--device cuda:all: torch sees no CUDA device here; calibrate the CPU (--device cpu), "
            "or say how many workers of a fleet have one (--workers N)"
        )
    kind = "cuda" if all_gpus or options.device.startswith("cuda") else "cpu"
    directory = options.directory
    with only_writer(directory):
        progress.say(
            f"{count} devices, one a worker of {backend}; each says how far it is in "
            f"{directory}/device0/progress.log, ..."
        )
        parts = _run(options, kind=kind, count=count, backend=backend)
        for part in parts:
            _save(part, directory)
        failed = [part for part in parts if part.error]
        for part in failed:
            progress.say(f"device {part.number} on {part.host}: {part.error}")
        if failed:
            raise CalibrationStopped(
                f"{len(failed)} of {len(parts)} devices were not measured to the end; what was "
                f"measured is saved in {directory}; go on with the same command and --resume"
            )
        if per_device:
            folders = [directory / f"device{part.number}" for part in parts]
        else:
            folders = [_pool(options, parts)]
        return [fit_command(folder, folder / f"{options.name}.json") for folder in folders]


def _run(options: CalibrationOptions, *, kind: str, count: int, backend: str) -> list[_FleetPart]:
    from joblib import Parallel, delayed, parallel_config  # noqa: PLC0415 - an extra brings it

    tasks = (
        delayed(_measure_one)(
            replace(
                options,
                out=options.directory.resolve() / f"device{number}",
                seed=options.seed + number,
            ),
            kind,
            number,
        )
        for number in range(count)
    )
    # ray hides every GPU from workers that ask for none.
    asked = {"ray_remote_args": {"num_gpus": 1}} if (backend, kind) == ("ray", "cuda") else {}
    with _cluster(backend, count), parallel_config(backend=backend, n_jobs=count, **asked):
        parts: list[_FleetPart] = Parallel(batch_size=1)(tasks)
    return parts


def _measure_one(options: CalibrationOptions, kind: str, number: int) -> _FleetPart:
    """Measure one device of a worker's machine that no other worker has; runs in the worker."""
    resume = options.resume and options.profile.exists()
    error = ""
    try:
        with _claimed(kind) as device, only_writer(options.directory):
            own = replace(options, device=device, resume=resume)
            with (options.directory / "progress.log").open("a", encoding="utf-8") as log:
                measure_profile(own, Progress(log))
    except NeuralPowerError as problem:
        error = str(problem)
    files = {}
    for name in ("profile.csv", "recipe.yaml"):
        path = options.directory / name
        if path.exists():
            files[name] = path.read_text(encoding="utf-8")
    return _FleetPart(number, socket.gethostname(), files, error)


def _save(part: _FleetPart, directory: Path) -> None:
    """Write what came from another machine; on this one it is there already."""
    for name, text in part.files.items():
        path = directory / f"device{part.number}" / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def _pool(options: CalibrationOptions, parts: Sequence[_FleetPart]) -> Path:
    """One recipe over the profiles of all devices.

    Raises
    ------
    OptionError
        They are not of one model.
    """
    recipes: list[dict[str, object]] = [yaml.safe_load(part.files["recipe.yaml"]) for part in parts]
    models = sorted({str(recipe["device"]) for recipe in recipes})
    if len(models) > 1:
        raise OptionError(
            f"the devices differ ({', '.join(models)}): one platform cannot describe them all; "
            "fit one for each with --per-device"
        )
    sources = [
        {
            "title": f"rows measured by `neuralpower calibrate {options.name}`, device {number}",
            "profile": f"device{part.number}/profile.csv",
        }
        for number, part in enumerate(parts)
    ]
    dump_recipe(
        {**recipes[0], "name": options.name, "sources": sources}, options.directory / "recipe.yaml"
    )
    return options.directory


# -- joblib's engines, and the devices of one machine that workers claim.


@contextmanager
def _cluster(backend: str, workers: int) -> Iterator[None]:
    """The engine's cluster: the one the environment names, else workers on this machine."""
    try:
        if backend == "dask":
            from distributed import Client  # noqa: PLC0415 - an extra
        elif backend == "ray":
            import ray  # noqa: PLC0415 - an extra
            from ray.util.joblib import register_ray  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError(
            f"--backend {backend} needs {backend}, which is not installed: "
            "pip install 'pytest-neuralpower[fleet]'"
        ) from None
    if backend == "dask":
        address = os.environ.get("DASK_SCHEDULER_ADDRESS")
        local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
        with Client(address) if address else Client(**local):
            yield
    elif backend == "ray":
        ray.init(ignore_reinit_error=True, include_dashboard=False)
        register_ray()
        try:
            yield
        finally:
            ray.shutdown()
    else:
        yield


@contextmanager
def _claimed(kind: str) -> Iterator[str]:
    """A device of this machine for one worker alone: a GPU, or one core of the processor.

    Raises
    ------
    OptionError
        Other workers have them all.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if kind == "cuda":
        names = {device: cuda_uuid(device) for device in cuda_devices()}
    else:
        names = {f"core{core}": f"core{core}" for core in cores} or {"cpu": "cpu"}
    for device, name in names.items():
        lock = FileLock(Path(tempfile.gettempdir()) / f"neuralpower-{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            if device.startswith("core"):
                os.sched_setaffinity(0, {int(device.removeprefix("core"))})
            yield device if kind == "cuda" else "cpu"
        finally:
            if device.startswith("core"):
                os.sched_setaffinity(0, cores)
            lock.release()
        return
    raise OptionError(f"no {kind} device is left on {socket.gethostname()}: use fewer --workers")
