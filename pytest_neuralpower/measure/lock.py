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
