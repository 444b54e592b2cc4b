"""joblib's engines: where the workers of a fleet run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pytest_neuralpower.errors import MissingExtraError

__all__ = ["BACKENDS", "asked_of", "engine"]

#: Engines that ``--backend`` takes.
BACKENDS: Final = ("loky", "dask", "ray")


def asked_of(backend: str, kind: str) -> dict[str, Any]:
    """What an engine must be asked for, beside workers, to measure devices of this kind."""
    # ray hides every GPU from workers that ask for none.
    return {"ray_remote_args": {"num_gpus": 1}} if (backend, kind) == ("ray", "cuda") else {}


@contextmanager
def engine(backend: str, workers: int) -> Iterator[None]:
    """The engine's cluster: the one the environment names, else workers on this machine."""
    if backend == "dask":
        try:
            from distributed import Client  # noqa: PLC0415 - an extra
        except ImportError:
            raise _missing("dask") from None
        address = os.environ.get("DASK_SCHEDULER_ADDRESS")
        local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
        with Client(address) if address else Client(**local):
            yield
    elif backend == "ray":
        try:
            import ray  # noqa: PLC0415 - an extra
            from ray.util.joblib import register_ray  # noqa: PLC0415
        except ImportError:
            raise _missing("ray") from None
        ray.init(ignore_reinit_error=True, include_dashboard=False)
        register_ray()
        try:
            yield
        finally:
            ray.shutdown()
    else:
        yield


def _missing(backend: str) -> MissingExtraError:
    return MissingExtraError(
        f"--backend {backend} needs {backend}, which is not installed: "
        "pip install 'pytest-neuralpower[fleet]'"
    )
