"""Models of timm by name, as its tables of benchmarks name them.

timm imports torchvision when it loads, of which its models need nothing; where torchvision is not
installed (its wheels bring CUDA), a stand-in answers for the few names that are asked for.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any, ClassVar

#: Modules that timm imports names of.
_ASKED = tuple(
    f"torchvision{name}"
    for name in (
        *("", ".datasets", ".ops", ".ops.misc", ".models", ".models.feature_extraction"),
        *(".transforms", ".transforms.functional"),
    )
)


class _StandIn(ModuleType):
    """A module whose every name is a class that does nothing."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


class _Anything:
    NEAREST, BILINEAR, BICUBIC = "nearest", "bilinear", "bicubic"
    BOX, HAMMING, LANCZOS = "box", "hamming", "lanczos"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


class _Torch(ModuleType):
    """torch, whose autocast of any device is CUDA's: there the tables were measured."""

    class amp:  # noqa: N801 - torch's own name
        @staticmethod
        def autocast(device_type: str, **settings: Any) -> Any:  # noqa: ARG004
            import torch  # noqa: PLC0415 - slow

            return torch.autocast("cuda", **settings)

    def __getattr__(self, name: str) -> Any:
        import torch  # noqa: PLC0415 - slow

        return getattr(torch, name)


def _fast_norms() -> None:
    """Layer and group norms in the dtype of autocast, as timm's option ``--fast-norm`` has them:
    the tables do not say so, but their rows do (families held out on an RTX 3090: 7.0% off with it,
    8.9% without)."""
    import torch  # noqa: PLC0415 - slow
    from timm.layers import fast_norm, set_fast_norm  # noqa: PLC0415 - after its stand-in

    set_fast_norm(True)
    fast_norm.torch = _Torch("torch")
    fast_norm.is_autocast_enabled = lambda _="": torch.is_autocast_enabled("cuda")
    fast_norm.get_autocast_dtype = lambda _="": torch.get_autocast_dtype("cuda")


def create(name: str, img_size: int) -> Any:
    """timm's model ``name``, with random weights, for images of ``img_size`` pixels a side."""
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        for name_ in _ASKED:
            module = sys.modules.setdefault(name_, _StandIn(name_))
            parent, _, own = name_.rpartition(".")
            if parent:
                setattr(sys.modules[parent], own, module)
    import timm  # noqa: PLC0415 - after its stand-in

    _fast_norms()
    bare = name.split(".", maxsplit=1)[0]  # without the name of its weights
    try:
        return timm.create_model(bare, img_size=img_size)
    except TypeError:  # most convolutional networks take any size
        return timm.create_model(bare)
