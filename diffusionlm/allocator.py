"""Memory of a process that trains or samples on a CPU: freed tensors are reused, and few compiled matrix products are kept."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # numbers of mallopt's parameters, in malloc.h
KEPT = 2**30  # bytes
# What oneDNN, and PyTorch above it, keep for each shape of a matrix product; the default of both is 1,024.
CAPACITIES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}


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


def keep_few_shapes() -> None:
    """Let oneDNN keep what it compiled for 64 shapes, unless the environment says how many; call it before the first product.

    Batches of texts have hundreds of shapes. With the default a training run of 5.7 million parameters grew by 1.8 GB, and was
    slower (benchmarks/README.md); a step needs the shapes of one batch.
    """
    for name, capacity in CAPACITIES.items():
        os.environ.setdefault(name, capacity)
