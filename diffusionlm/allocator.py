"""Keep freed memory: tensors over a vocabulary are large, and glibc returns each to the system and asks for it again."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # numbers of mallopt's parameters, in malloc.h
KEPT = 2**30  # bytes


def keep_freed_memory() -> None:
    """Let glibc reuse blocks of up to ``KEPT`` bytes of this process, without new pages for each; elsewhere do nothing.

    The system clears pages on first use, which took 28 % of the CPU time of training at 11,479 words (benchmarks/README.md).
    """
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):  # another C library, which has no mallopt
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(MMAP_THRESHOLD, KEPT)
        mallopt(TRIM_THRESHOLD, KEPT)
