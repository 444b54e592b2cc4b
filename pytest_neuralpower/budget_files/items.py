"""Budget files in pytest: a file is collected, each of its models is a test on each platform."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_neuralpower.budget_files.schema import read_entries
from pytest_neuralpower.errors import BudgetFileError, NeuralPowerError
from pytest_neuralpower.settings import platform_at

if TYPE_CHECKING:
    from pytest_neuralpower.budget_files.schema import Entry

__all__ = ["BudgetFile", "BudgetItem"]


class BudgetFile(pytest.File):
    """One ``*.budget.yaml``."""

    def collect(self) -> Iterable[BudgetItem]:
        """The models in the order of the file, once for each platform."""
        from pytest_neuralpower.plugin import session_platforms  # noqa: PLC0415 - it collects us

        root = self.config.rootpath
        shown = self.path.relative_to(root) if self.path.is_relative_to(root) else self.path
        try:
            entries = read_entries(self.path, str(shown))
        except BudgetFileError as error:
            raise self.CollectError(str(error)) from None
        for entry in entries:
            given = [platform_at(each, self.path.parent) for each in entry.platforms]
            platforms = tuple(given) or session_platforms(self.config)
            several = len(platforms) > 1
            for platform in platforms or (None,):
                yield BudgetItem.from_parent(
                    self,
                    name=f"{entry.name}[{platform}]" if several else entry.name,
                    entry=entry,
                    platform=platform,
                )


class BudgetItem(pytest.Item):
    """One model on one platform: its budgets are markers, its tags too.

    Attributes
    ----------
    neuralpower_platform
        The platform's name as it was asked for; None where none was chosen anywhere.
    """

    def __init__(self, *, entry: Entry, platform: str | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.entry = entry
        self.neuralpower_platform = platform
        self.several_platforms = self.name != entry.name
        for tag in entry.tags:
            # What a budget file calls a tag need not be registered a second time.
            self.config.addinivalue_line("markers", f"{tag}: a tag of a budget file")
            self.add_marker(tag)
        for marker, arguments in (
            *entry.budgets,
            *([] if entry.tolerance is None else [("regression", entry.tolerance)]),
        ):
            named = arguments.get("platform")
            if named is None or platform is None or self._is(named):
                own = {} if platform is None else {"platform": self._from_anywhere(platform)}
                self.add_marker(getattr(pytest.mark, marker)(**{**arguments, **own}))

    def _from_anywhere(self, platform: str) -> str:
        """A path of a platform that means the same in a marker, wherever that is read."""
        return (
            platform
            if platform_at(platform, Path("x")) == platform
            else str(Path(platform).absolute())
        )

    def _is(self, named: str) -> bool:
        return platform_at(named, self.path.parent) == self.neuralpower_platform

    def runtest(self) -> None:
        """Build the model, and predict one call of it."""
        from pytest_neuralpower.budget_files.imports import in_folder  # noqa: PLC0415
        from pytest_neuralpower.budget_files.inputs import make_inputs  # noqa: PLC0415
        from pytest_neuralpower.model_source import load_model  # noqa: PLC0415
        from pytest_neuralpower.plugin import guard_of  # noqa: PLC0415 - it collects us
        from pytest_neuralpower.session import NeuralPower  # noqa: PLC0415

        entry, folder = self.entry, self.path.parent
        try:
            target = in_folder(entry.model, folder)
            model = load_model(target, dict(entry.arguments), in_file=True)
            args, kwargs = make_inputs(entry.inputs, folder)
            NeuralPower(guard_of(self)).predict(model.eval(), *args, **kwargs)
        except NeuralPowerError as error:
            raise BudgetFileError(f"{self.location[0]}:{entry.line}: {error}") from None

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.entry.line - 1, self.name
