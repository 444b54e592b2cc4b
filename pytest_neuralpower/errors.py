"""Every error a user can meet. Each message is one line: the value, what is allowed, what to do."""

from __future__ import annotations

from typing import Final

from pytest_neuralpower.text import printable

#: Characters of a line: values in it may be of any length.
_LINE: Final = 4000


class NeuralPowerError(Exception):
    """Base of all errors raised for a user's mistake or an unmet precondition.

    The message is made fit to print: in one line, control characters escaped, abridged beyond
    4,000 characters.

    Attributes
    ----------
    exit_code
        Of the command that it ends.
    """

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, _LINE))


class TraceError(NeuralPowerError, RuntimeError):
    """The model could not be traced with these inputs."""


class PlatformError(NeuralPowerError, ValueError):
    """A platform is unknown, unreadable, invalid, or does not cover what was asked of it."""


class ProfileError(NeuralPowerError, ValueError):
    """Measured rows cannot be used; the message names the file and the line."""


class FitError(NeuralPowerError, ValueError):
    """Rows are readable but no trustworthy estimator can be fitted from them."""


class BudgetError(NeuralPowerError, ValueError):
    """A budget is misused: unknown unit, no limit, not a positive number."""


class BaselineError(NeuralPowerError, ValueError):
    """A stored baseline is missing, broken, of another platform, or cannot be written."""


class BudgetFileError(NeuralPowerError, ValueError):
    """A budget file is broken: a line for each mistake, with the file, its line and what is
    allowed."""

    def __init__(self, *mistakes: str) -> None:
        lines = "\n".join(printable(each, _LINE) for each in mistakes)
        super(NeuralPowerError, self).__init__(lines)


class CompareError(NeuralPowerError, ValueError):
    """Two sets of predictions could not be compared."""


class ReportError(NeuralPowerError, ValueError):
    """A report cannot be written or read: unknown suffix, a folder that does not take it."""


class ImportPathError(NeuralPowerError, ValueError):
    """``package.module:name`` cannot be imported or called."""


class MissingExtraError(NeuralPowerError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class CompressError(NeuralPowerError, ValueError):
    """A width, a plan or a way of pruning that this model or platform cannot have."""


class UnsupportedGraphError(CompressError):
    """The model's widths cannot be told apart; the message names the operation."""


class OptionError(NeuralPowerError, ValueError):
    """Options of a command or of ``generate`` are out of range, or contradict each other."""


# The three below are named for what happened, not for a mistake in the code.


class MeterRefused(NeuralPowerError, RuntimeError):  # noqa: N818
    """A meter cannot be trusted on this machine; the message says why and what to do."""


class DeviceLost(NeuralPowerError, RuntimeError):  # noqa: N818
    """The device or its driver went away while it was measured: nothing more can be read."""


class ReadingVoid(NeuralPowerError, RuntimeError):  # noqa: N818
    """One window cannot be used (its counter froze or ran backwards); another may be."""


class CalibrationStopped(NeuralPowerError, RuntimeError):  # noqa: N818
    """A calibration ended early; what it measured is saved, and the message says how to go on."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Terminated(KeyboardInterrupt):
    """SIGTERM came, which ends a calibration as Ctrl-C does."""


def signal_code(stop: KeyboardInterrupt) -> int:
    """Exit code of a command that a signal ended, as shells have it: 128 and the signal."""
    return 143 if isinstance(stop, Terminated) else 130
