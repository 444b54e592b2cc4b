"""What a forward asks of CUDA beyond tensors, answered on a machine without it.

Autocast for CUDA holds where the model stands on the CPU, as it would on the device that the price
is of: so every machine lists the same layers. Streams, events and the like order work that a trace
does not run, so they are ignored.
"""

from __future__ import annotations

import math
import sys
import threading
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch

from pytest_neuralpower.tracing.torch_private import AUTOCAST_ENABLED, autocast_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_neuralpower.tracing.recorder import Recorder

#: Operations that CUDA's autocast runs in float32, by the names that layers have. Norms and
#: softmaxes, whose rules know it, are not among them.
FLOAT32: Final = frozenset(
    ("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p",
     "reciprocal", "rsqrt", "sinh", "tan", "pow", "softplus", "norm", "cosine_similarity",
     "poisson_nll_loss", "cosine_embedding_loss", "nll_loss", "hinge_embedding_loss", "kl_div",
     "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "margin_ranking_loss",
     "multilabel_margin_loss", "soft_margin_loss", "triplet_margin_loss", "multi_margin_loss",
     "binary_cross_entropy_with_logits", "cross_entropy", "dist", "pdist", "cdist", "renorm",
     "logsumexp", "prod", "cumprod", "cumsum", "vector_norm", "matrix_norm", "linalg_vector_norm",
     "linalg_matrix_norm", "sum")
)  # fmt: skip

#: Those of them whose kernels convert what they read; autocast only asks for a result in float32.
CONVERTING: Final = frozenset(
    ("sum", "prod", "cumsum", "cumprod", "norm", "vector_norm", "matrix_norm",
     "linalg_vector_norm", "linalg_matrix_norm")
)  # fmt: skip


@contextmanager
def without_cuda(recorder: Recorder) -> Iterator[None]:
    """Let autocast for CUDA and calls of ``torch.cuda`` pass, of one trace at a time."""
    changes = _autocast(recorder)
    if not torch.cuda.is_available():
        changes += [*_stand_ins(), *_imported]
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in changes]
    _ignored.clear()
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            if value is None:  # inherited
                delattr(owner, name)
            else:
                setattr(owner, name, value)
        if _ignored:
            recorder.notes[f"Ignored, as this machine has no CUDA: {', '.join(_ignored)}."] = None


_Changes = list[tuple[Any, str, Any]]


def _autocast(recorder: Recorder) -> _Changes:
    """Torch turns autocast for CUDA off as it is made, on a machine without CUDA."""
    kind = torch.autocast
    make: Any = kind.__init__
    enter: Any = kind.__enter__
    owner = threading.get_ident()
    made: dict[int, Any] = {}

    def make_here(
        self: Any,
        device_type: str,
        dtype: torch.dtype | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:
        if threading.get_ident() != owner or recorder.home != "cpu":
            make(self, device_type, dtype, enabled, cache_enabled)
            return
        made[id(self)] = self
        if device_type == "cpu" and torch.is_autocast_enabled("cuda"):
            # What is inside asks its tensors where they are; on the device they would be there.
            device_type = "cuda"
        if device_type == "cuda":
            make(self, device_type, dtype, False, cache_enabled)
            setattr(self, AUTOCAST_ENABLED, enabled)
        else:
            make(self, device_type, dtype, enabled, cache_enabled)

    def enter_here(self: Any) -> Any:
        if (
            self.device == "cuda"
            and id(self) not in made
            and not autocast_on(self)
            and not torch.cuda.is_available()
        ):
            recorder.notes[
                "An autocast for CUDA was made before the trace, where torch turns it off for want "
                "of CUDA: its layers are listed without it; make it inside forward."
            ] = None
        return enter(self)

    return [(kind, "__init__", make_here), (kind, "__enter__", enter_here)]


# -- Streams, events, ranges of a profiler.


class _Ordering:
    """A stream or an event: takes any arguments and does nothing."""

    device = torch.device("cuda")

    def __init__(self, *_args: Any, **_options: Any) -> None: ...

    def __enter__(self) -> _Ordering:
        return self

    def __exit__(self, *_exception: object) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _end: Any) -> float:
        return math.nan  # unknown, and dividing by it is no error

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return _ordering if name == "record_event" else _no_result


def _no_result(*_args: Any, **_options: Any) -> None: ...


def _ordering(*_args: Any, **_options: Any) -> _Ordering:
    return _Ordering()


def _zero(*_args: Any, **_options: Any) -> int:
    return 0


#: What stands for a public name of ``torch.cuda`` and its neighbours.
_IGNORED: Final[tuple[tuple[Any, str, dict[str, Callable[..., Any]]], ...]] = (
    (
        torch.cuda,
        "torch.cuda",
        {
            **dict.fromkeys(("synchronize", "set_stream", "set_device"), _no_result),
            **dict.fromkeys(("current_stream", "default_stream"), _ordering),
            **dict.fromkeys(("stream", "device"), nullcontext),
        },
    ),
    (
        torch.cuda.nvtx,
        "torch.cuda.nvtx",
        {
            **dict.fromkeys(("range_push", "range_pop", "range_start"), _zero),
            **dict.fromkeys(("range_end", "mark"), _no_result),
        },
    ),
    (
        torch.accelerator,
        "torch.accelerator",
        {"synchronize": _no_result, "current_stream": _ordering, "set_stream": _no_result},
    ),
    # Its parser refuses what is no stream of torch's before the tracer is asked.
    (torch.Tensor, "Tensor", {"record_stream": _no_result}),
)
#: Classes, replaced by classes so that ``isinstance`` keeps working.
_ORDERINGS: Final = (
    (torch.cuda, "torch.cuda", ("Event", "Stream", "ExternalStream")),
    (torch, "torch", ("Event", "Stream")),
)


#: What the current trace called of them.
_ignored: dict[str, None] = {}


@cache
def _stand_ins() -> _Changes:
    """Made once: they take down by name what was called."""

    def call(name: str, stand_in: Callable[..., Any]) -> Callable[..., Any]:
        def ignore(*args: Any, **options: Any) -> Any:
            _ignored[name] = None
            return stand_in(*args, **options)

        return ignore

    def ordering(name: str) -> type[_Ordering]:
        class Ignored(_Ordering):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                _ignored[name] = None

        return Ignored

    calls = [
        (owner, name, call(f"{place}.{name}", stand_in))
        for owner, place, stand_ins in _IGNORED
        for name, stand_in in stand_ins.items()
    ]
    classes = [
        (owner, name, ordering(f"{place}.{name}"))
        for owner, place, names in _ORDERINGS
        for name in names
    ]
    return [*calls, *classes]


#: Where code has these names for itself, as ``from torch.cuda import synchronize`` makes them.
_imported: _Changes = []


def find_imported() -> bool:
    """Look through the loaded modules for such names; whether there are more than were known.

    It takes milliseconds, so it is done only once a forward has failed for want of CUDA.
    """
    originals = {id(getattr(owner, name)): stand_in for owner, name, stand_in in _stand_ins()}
    found = [
        (module, name, originals[id(value)])
        for module in [*sys.modules.values()]
        if getattr(module, "__name__", "torch").partition(".")[0] != "torch"
        for name, value in [*getattr(module, "__dict__", {}).items()]
        if id(value) in originals
    ]
    more = len(found) > len(_imported)
    _imported[:] = found
    return more
