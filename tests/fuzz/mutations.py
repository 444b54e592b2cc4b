"""Files and values as strangers and accidents leave them: changed by a generator with a seed.

What is changed begins right, so that most of what comes out gets past the first checks.
"""

from __future__ import annotations

import copy
import datetime
import random
from collections.abc import Iterator
from typing import Any

#: Values that no field expects, or that are at the edge of what it does.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 10**6, 2**31, 2**63 - 1, 2**63, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.5, -1.0, 1e-320, 1e-30, 1e30, 1e308, -1e308),
    *("", " ", "x", "0", "-1", "nan", "inf", "1e999", "1x8", "8x64x56x56", "x" * 3000),
    *("\n::error x", "../../x", "/abs", "\x1b[2J", "\ud800", "\0", "a:b", "titanx"),
    *("float32", "int64", "conv", "linear", "conv2d", "launch", "flops", "==", "energy"),
    *("{{", "<script>", "²", "٣"),
    *([], {}, [[]], [None], [1, 2], ["1x8"], {"a": 1}, {"": []}, [0] * 300),
    datetime.date(2001, 1, 1),
)  # fmt: skip

#: Pieces of text that mean something to a reader of YAML, JSON or CSV.
PIECES: tuple[str, ...] = (
    *("\n", "\r", "\t", "\0", "\x01", "\x85", "\u2028", "\ufeff", "\ud800", "é", " " * 40),
    *("[", "]", "{", "}", "[" * 200, "{a: " * 200, ":", ",", "- ", "? ", "&a ", "*a", "<<: *a"),
    *("!!", "!!int ", "!!timestamp x", "!!binary x", "!!set {a}", "!!python/name:os.system "),
    *("%YAML 9", "#", "|", ">", "'", '"', "`", "\\", "\\ud800", "---", "...", "null", "~", "true"),
    *("=", ";", "x", "NaN", "Infinity", "1e999", "-1", "0", "0x1F", "1:59:59", "9" * 25),
    *("9" * 5000, "2001-13-45"),
)  # fmt: skip


def places(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Keys and indices that lead to every value within lists and mappings."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from places(value, (*above, key))


def changed_tree(tree: Any, rng: random.Random, most: int = 3) -> Any:
    """A copy of lists and mappings, in which up to ``most`` values are others, gone or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, most)):
        found = list(places(tree))
        if not found:
            break
        # Short ways first as often as long ones: the head of a file has few values.
        depth = rng.choice(sorted({len(each) for each in found}))
        *way, key = rng.choice([each for each in found if len(each) == depth])
        holder = tree
        for step in way:
            holder = holder[step]
        _change(holder, key, rng)
    return tree


def _change(holder: Any, key: Any, rng: random.Random) -> None:
    value = holder[key]
    kind = rng.randrange(8)
    if kind <= 2:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 3 and isinstance(value, int | float):
        holder[key] = rng.choice([-value, value * 1000, value // 1000, value + 1, value % 7])
    elif kind == 3 and isinstance(value, str):
        holder[key] = changed_text(value, rng)
    elif kind == 4:
        del holder[key]
    elif kind == 5 and isinstance(holder, dict):
        holder[str(rng.choice(VALUES))[:20]] = holder.pop(key)
    elif kind == 5:
        holder.insert(rng.randint(0, len(holder)), copy.deepcopy(value))
    else:
        others = list(holder) if isinstance(holder, dict) else range(len(holder))
        other = rng.choice(list(others))
        holder[key], holder[other] = holder[other], value


def changed_text(text: str, rng: random.Random, most: int = 4) -> str:
    """The text with up to ``most`` pieces cut out, repeated, moved or put in."""
    for _ in range(rng.randint(1, most)):
        start = rng.randint(0, len(text))
        end = min(len(text), start + rng.choice([1, 2, 8, 40, len(text)]))
        kind = rng.randrange(5)
        if kind == 0:
            text = text[:start] + text[end:]
        elif kind == 1:
            text = text[:end] + text[start:end] * rng.choice([1, 2, 30]) + text[end:]
        elif kind == 2:
            at = rng.randint(0, len(text))
            text = text[:at] + text[start:end] + text[at:]
        else:
            text = text[:start] + rng.choice(PIECES) + text[start + rng.choice([0, 0, 1, 5]) :]
    return text[:200_000]
