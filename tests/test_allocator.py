"""Memory that is freed is used again, without new pages from the system, and little is kept for each shape of a batch."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from diffusionlm.allocator import keep_freed_memory
keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(2**26)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_a_block_of_the_size_of_one_that_was_freed_takes_no_new_pages() -> None:
    child = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(child.stdout) < 1000  # 64 MiB are 16,384 pages of 4 KiB


SHAPES = """
import ctypes
import torch
from diffusionlm.allocator import keep_few_shapes
keep_few_shapes()

class Usage(ctypes.Structure):  # mallinfo2 of malloc.h
    _fields_ = [(name, ctypes.c_size_t) for name in (*"abcdefg", "used", "free", "kept")]

libc = ctypes.CDLL("libc.so.6")
libc.mallinfo2.restype = Usage
layer = torch.nn.Linear(192, 768).bfloat16()
used = []
for rows in range(1, 200):
    layer(torch.randn(rows, 192, dtype=torch.bfloat16)).sum().backward()
    used.append(libc.mallinfo2().used)
print(used[-1] - used[99])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc 2.33")
def test_memory_does_not_grow_with_the_number_of_shapes() -> None:
    child = subprocess.run([sys.executable, "-c", SHAPES], capture_output=True, text=True, check=True)
    assert int(child.stdout) < 2**24  # 100 shapes more; with PyTorch's own capacity about 2**26 bytes and more
