"""What stops the function route; internal, never shown to a user."""

from __future__ import annotations

__all__ = ["NeedsAten", "NeedsForward", "NoRule", "ShapeMismatch"]


class _Detour(BaseException):
    """A route cannot go on.

    A ``BaseException``, so that a model's own ``except Exception`` does not swallow it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NeedsForward(_Detour):
    """The model's next step depends on values: only a real forward can tell."""


class NeedsAten(_Detour):
    """The model differentiates or batches inside forward: only the dispatcher sees those."""


class NoRule(Exception):  # noqa: N818 - a signal between modules, never an error shown
    """A rule does not cover this use of its operation; a fallback answers it."""


class ShapeMismatch(RuntimeError):  # noqa: N818 - likewise
    """Torch itself refuses these shapes or arguments; carries torch's message.

    A ``RuntimeError``, as torch raises, so that a model's own handling keeps working.
    """
