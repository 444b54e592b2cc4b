"""One process at a time: a lock on a calibration folder that names who holds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_neuralpower.errors import ProfileError

__all__ = ["only_writer"]


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Hold the folder for this process; the system lets go of it when the process dies.

    Raises
    ------
    ProfileError
        Another process holds it (the line names its id), or the folder cannot be written.
    """
    owner = directory / ".calibrating.pid"
    lock = FileLock(directory / ".calibrating.lock")
    try:
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
        raise ProfileError(f"{directory} cannot be written ({error}): choose another --out") from (
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


def _named(owner: Path) -> str:
    try:
        return f"pid {int(owner.read_text(encoding='ascii'))}"
    except (OSError, ValueError):
        return "its pid is not written yet"
