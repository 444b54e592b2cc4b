"""Memory of a process on a CPU: kept once it was got, while layers are timed.

glibc gives large blocks back to the system as soon as they are free and gets them anew, page by
page, at 0.5 ms a megabyte: several times what a streaming layer takes. When it does so depends on
what the process allocated before, so the same layer takes one time or five times as long. Servers
keep memory (``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1``, jemalloc, tcmalloc); so do trials.
"""

from __future__ import annotations

import ctypes
from functools import cache

__all__ = ["keep_memory"]

#: Names of ``mallopt``'s parameters in glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4


@cache
def keep_memory() -> bool:
    """Let this process keep what it frees, from now on; False where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
