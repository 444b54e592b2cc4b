"""YAML whose every part knows its line, so that a mistake can be shown where it is."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import yaml

from pytest_neuralpower.errors import BudgetFileError

__all__ = ["Located", "load"]


class Located(NamedTuple):
    """A value and its line; mappings and lists hold located values, everything else is plain."""

    value: Any
    line: int

    def plain(self) -> Any:
        """The value without lines, all the way down."""
        if isinstance(self.value, dict):
            return {key: each.plain() for key, each in self.value.items()}
        if isinstance(self.value, list):
            return [each.plain() for each in self.value]
        return self.value


def load(text: str, name: str) -> Located:
    """Read one YAML document; ``name`` is the file's, for messages.

    Raises
    ------
    BudgetFileError
        With file and line: it is not YAML, is empty, or has one key twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise BudgetFileError(f"{name}:1: the file is empty; it needs models:")
        return _located(loader, node, name)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise BudgetFileError(f"{name}:{line}: not YAML ({problem})") from None
    finally:
        loader.dispose()


def _located(loader: yaml.SafeLoader, node: yaml.Node, name: str) -> Located:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)  # merges << of anchors
        found: dict[Hashable, Located] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            where = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise BudgetFileError(f"{name}:{where}: a key must be a word, not {key!r}")
            if key in found:
                raise BudgetFileError(f"{name}:{where}: the key {key!r} is there twice; remove one")
            found[key] = _located(loader, value_node, name)._replace(line=where)
        return Located(found, line)
    if isinstance(node, yaml.SequenceNode):
        return Located([_located(loader, each, name) for each in node.value], line)
    return Located(loader.construct_object(node, deep=True), line)
