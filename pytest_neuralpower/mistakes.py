"""A user's mistake inside a test is one line at its place, never a traceback through our code."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from pytest_neuralpower.errors import NeuralPowerError


class OneLineMistakes:
    """Turns an error of ours that a test or a fixture lets through into one line, at its place."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._run(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._run(item))

    def _run(self, item: pytest.Item) -> Generator[None, object, object]:
        try:
            return (yield)
        except NeuralPowerError as error:
            text = f"{self._place(item, error)}{error}"
            raise pytest.fail.Exception(text, pytrace=False) from None

    def _place(self, item: pytest.Item, error: BaseException) -> str:
        """``test_model.py:12: `` where the user's code is on the way to the error; else empty."""
        place, step = "", error.__traceback__
        while step is not None:
            path = Path(step.tb_frame.f_code.co_filename)
            if path.name.startswith(("test_", "conftest")) and path.is_relative_to(
                item.config.rootpath
            ):
                place = f"{path.relative_to(item.config.rootpath)}:{step.tb_lineno}: "
            step = step.tb_next
        return place
