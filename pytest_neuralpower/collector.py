"""The cyclic garbage collector, paused where many objects are made and no cycle among them.

Importing torch leaves the collector just short of a full collection: in CPython 3.11 with torch
2.13 at (484, 3, 10) of (700, 10, 10). The few thousand objects of our imports would set it off, and
walking torch's heap takes longer than a whole first prediction (65 ms).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Run without the collector; afterwards it is as it was, also after an error."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
