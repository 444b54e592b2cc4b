"""Write measured rows to a profile, one process at a time, so that no row is lost."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from filelock import FileLock, Timeout

from pytest_neuralpower.calibrate.fit.profile import CALIBRATED, NETWORK, OPTIONAL, REQUIRED
from pytest_neuralpower.errors import ProfileError
from pytest_neuralpower.layer_codec import params_text, tensors_text

if TYPE_CHECKING:
    from pytest_neuralpower.calibrate.fit.rows import MeasuredRow
    from pytest_neuralpower.calibrate.measure.conditions import Conditions
    from pytest_neuralpower.calibrate.measure.trial import Trial


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Hold the folder for this process; the system lets go of it when the process dies.

    A folder that was made for this, and in which nothing was written, is removed again.

    Raises
    ------
    ProfileError
        Another process holds it (the line names its id), or the folder cannot be written.
    """
    owner = directory / ".calibrating.pid"
    lock = FileLock(directory / ".calibrating.lock")
    made: list[Path] = []
    try:
        made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        while not Path(lock.lock_file).exists():  # its last holder has just removed it
            lock.release()
            lock.acquire(timeout=0)
    except Timeout:
        raise ProfileError(
            f"{directory} is being calibrated by another process ({_named(owner)}): wait for it, "
            "or calibrate into another folder with --out"
        ) from None
    except OSError as error:
        reason = _file_in_the_way(directory, error) or error
        raise ProfileError(f"{directory} cannot be written ({reason}): choose another --out") from (
            None
        )
    try:
        with suppress(OSError):  # a full disk: the lock holds without a name
            owner.write_text(f"{os.getpid()}\n", encoding="ascii")
        yield
    finally:
        owner.unlink(missing_ok=True)
        # While it is held: another process may hold it as soon as it is released.
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # the first that is not empty ends it
            for folder in made:
                folder.rmdir()


def _file_in_the_way(directory: Path, error: OSError) -> str:
    if not isinstance(error, FileExistsError | NotADirectoryError):
        return ""
    files = (path for path in (directory, *directory.parents) if path.is_file())
    return next((f"{path} is a file" for path in files), "")


def _named(owner: Path) -> str:
    try:
        return f"pid {int(owner.read_text(encoding='ascii'))}"
    except (OSError, ValueError):
        return "its pid is not written yet"


# -- The profile.
#
# A trial's rows are written in one go and synced to the disk before the next trial starts. A
# process that dies meanwhile leaves at most a torn end, which the next writer cuts off: the last
# line if it has no end, and the last trial's rows if its last one is not there.

COLUMNS: Final = tuple(name for name in REQUIRED + OPTIONAL + CALIBRATED if name != "energy_mj")

_SKIPPED: Final = "# skipped "


class ProfileWriter:
    """One profile, open for appending; a context manager.

    Raises
    ------
    ProfileError
        The profile cannot be opened or repaired.
    """

    def __init__(self, path: Path, *, provenance: Mapping[str, str], dtype: str) -> None:
        self.path = path
        self._dtype, self._uuid = dtype, provenance.get("device_uuid", "")
        try:
            if path.exists():
                _cut_torn_end(path)
            self._file: IO[bytes] = path.open("ab", buffering=0)
        except OSError as error:
            raise ProfileError(f"profile {path}: it cannot be written ({error})") from None
        if self._file.tell() == 0:
            head = "".join(f"# {key}: {_line(value)}\n" for key, value in provenance.items())
            self._append(head + ",".join(COLUMNS) + "\n")

    def __enter__(self) -> ProfileWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, trial: Trial, rows: Sequence[MeasuredRow], conditions: Conditions) -> None:
        """Append one trial's rows, the whole network's last, and sync them to the disk.

        Raises
        ------
        OSError
            They could not be written (the disk is full): the file is as it was before.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        seen = {
            "when": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "device_uuid": self._uuid,
            "temperature_c": _number(conditions.temperature_c),
            "clock_mhz": _number(conditions.clock_mhz),
            "flaw": conditions.void,
        }
        for row in sorted(rows, key=lambda row: row.whole):
            writer.writerow(_cells(trial, row, self._dtype) | seen)
        self._append(text.getvalue())

    def skip(self, trial: Trial, reason: str) -> None:
        """Note that a trial cannot be measured here, so that it is not tried again."""
        self._append(f"{_SKIPPED}{trial.id}: {_line(reason)}\n")

    def _append(self, text: str) -> None:
        end = self._file.seek(0, os.SEEK_END)
        data = text.encode()
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise


def trials_done(path: Path) -> frozenset[str]:
    """Ids of the trials that a repaired profile holds, measured or skipped."""
    done = set()
    lines, names = path.read_text(encoding="utf-8").splitlines(), ",".join(COLUMNS)
    for line in lines[lines.index(names) + 1 :] if names in lines else ():
        if line.startswith(_SKIPPED):
            done.add(line.removeprefix(_SKIPPED).partition(":")[0])
        else:
            done.add(_trial_of(line))
    return frozenset(done)


def _cells(trial: Trial, row: MeasuredRow, dtype: str) -> dict[str, object]:
    """What is not there stays empty."""
    layer = row.layer
    cells: dict[str, object] = {"kind": NETWORK, "op": trial.template}
    if layer is not None:
        cells = {
            "kind": layer.kind,
            "op": layer.op,
            "inputs": tensors_text(layer.inputs, layer.dtype),
            "weights": tensors_text(layer.weights, layer.dtype),
            "outputs": tensors_text(layer.outputs, layer.dtype),
            "params": params_text(layer.params),
            "dtype": "" if layer.dtype == dtype else layer.dtype,
        }
    return cells | {
        "runtime_ms": _number(row.runtime_ms),
        "power_w": _number(row.power_w),
        "trial": trial.id,
        "what": trial.what,
        "network": row.network,
        "seed": trial.seed,
        "index": row.index,
        "calls": row.calls,
        "pass": row.pass_,
        "wall_ms": _number(row.wall_ms),
        "probe_ms": _number(row.probe_ms),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _line(text: str) -> str:
    return " ".join(str(text).split())


def _trial_of(line: str) -> str:
    return next(csv.reader([line]))[COLUMNS.index("trial")]


def _cut_torn_end(path: Path) -> None:
    """Cut off what a process that died left half written: a line, or a trial's last rows."""
    data = path.read_bytes()
    lines = data[: data.rfind(b"\n") + 1].decode().splitlines(keepends=True)
    names = ",".join(COLUMNS) + "\n"
    if names in lines:
        table = lines.index(names) + 1
        lines = lines[:table] + _whole_trials(lines[table:])
    elif any(not line.startswith("#") for line in lines):
        raise ProfileError(
            f"profile {path}: its columns are not those of a calibration; move it away"
        )
    else:
        lines = []  # it died while it wrote the head: nothing was measured yet
    kept = "".join(lines).encode()
    if len(kept) != len(data):
        with path.open("r+b") as file:
            file.truncate(len(kept))
            os.fsync(file.fileno())


def _whole_trials(lines: list[str]) -> list[str]:
    """Without the last trial, if the row of the whole network, which ends it, is missing."""
    if not lines or lines[-1].startswith("#"):
        return lines
    last = next(csv.reader([lines[-1]]))
    if last[COLUMNS.index("what")] != "network" or last[0] == NETWORK:
        return lines
    kept = list(lines)
    while kept and not kept[-1].startswith("#") and _trial_of(kept[-1]) == _trial_of(lines[-1]):
        kept.pop()
    return kept
