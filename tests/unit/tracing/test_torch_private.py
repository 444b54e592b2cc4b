"""Names that torch does not promise are used through ``torch_private`` alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import pytest_neuralpower

PACKAGE = Path(pytest_neuralpower.__file__).parent

#: Rows of tables: names of torch's functions and operations, which nothing looks up.
TABLES = {"tracing/rules", "tracing/aten.py"}


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


#: Private attributes of tensors and modules, read off torch itself.
ATTRIBUTES = set(
    filter(private, (*dir(torch.Tensor), *dir(torch.nn.Module()), *dir(torch.jit.ScriptModule())))
) | {"_orig_mod", "_dynamo", "_call_impl"}


def strays(source: str) -> Iterator[tuple[int, str]]:
    """Private names of torch that a module uses, with their lines.

    These are imports from private modules or of private names, attributes below ``torch`` or
    ``nn``, and what only tensors and modules have: read from anything but ``self``, or spelled as
    a string.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "torch"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            root = ast.unparse(node).split(".")[0]
            if root in ("self", "cls"):
                continue
            of_torch = root in ("torch", "nn") or node.attr in ATTRIBUTES
            names = [node.attr] if of_torch else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [name for name in node.value.split(".") if name in ATTRIBUTES]
        else:
            continue
        yield from ((node.lineno, name) for name in names if any(map(private, name.split("."))))


def test_private_names_of_torch_are_in_one_file() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "tracing" / "torch_private.py"
        and not any(path.is_relative_to(PACKAGE / table) for table in TABLES)
        for line, name in strays(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch._dynamo",
        "from torch._C import _nn",
        "from torch.nn.modules.module import _has_any_global_hook",
        "from torch.utils._python_dispatch import TorchDispatchMode",
        "torch._C.DisableTorchFunction()",
        "nn.modules.module._global_forward_hooks",
        "tensor._base",
        "own['_parameters']",
        "getattr(model, '_orig_mod', model)",
        "'torch._dynamo' in sys.modules",
    ],
)
def test_a_stray_is_found(source: str) -> None:
    assert list(strays(source))


@pytest.mark.parametrize(
    "source",
    [
        "torch.nn.functional.relu",
        "self._modules",
        "layer._replace(path='')",
        "from torch import nn",
    ],
)
def test_what_torch_promises_is_none(source: str) -> None:
    assert not list(strays(source))
