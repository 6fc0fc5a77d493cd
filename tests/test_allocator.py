"""Memory that is freed is used again, without new pages from the system."""

from __future__ import annotations

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
