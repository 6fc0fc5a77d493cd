"""How many samples are drawn at once: as many as a batch has, unless their tensors over the vocabulary do not fit in memory.

Samples do not depend on each other, and their noise is that of their own numbers, so a batch is divided without another effect
than rounding. Shapes: B samples, L positions, V words.
"""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from diffusionlm.pipelines.conditioning import say_once

GUIDED, UNGUIDED = 24, 12  # tensors (L, V) in fp32 that exist at once for a sample, with and without controls (measured: 21, 9)
SHARE = 0.5  # of the memory that is free
MOST = 4 * 2**30  # bytes: larger tensors are no faster on a CPU
GPU = "cuda"


def samples_at_once(batch_size: int, length: int, model: Any, guided: bool) -> int:
    """Return how many of ``batch_size`` samples of up to ``length`` tokens are drawn at once; fewer is said on stderr."""
    fitting = rows_at_once(length, model, guided)
    if fitting >= batch_size:
        return batch_size
    say_once(
        f"batch_size: {fitting} sample{'s are' if fitting > 1 else ' is'} drawn at once, not {batch_size}, to keep tensors of "
        f"{length} tokens over {words_of(model)} words small in memory; the samples are the same up to rounding"
    )
    return fitting


def rows_at_once(length: int, model: Any, guided: bool = False) -> int:
    """Return how many texts of up to ``length`` tokens the model denoises at once in the memory that is free, at least 1."""
    share = SHARE * free_memory(model.device)
    limit = share if model.device.type == GPU else min(share, MOST)
    return max(1, int(limit // ((GUIDED if guided else UNGUIDED) * 4 * max(1, length) * words_of(model))))


def words_of(model: Any) -> int:
    """Return V, the number of words of a model."""
    return int(model.config.vocab_size)


def free_memory(device: torch.device) -> float:
    """Return the bytes of memory that are free on a device; of the main memory also those that files are cached in."""
    if device.type == GPU:
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = {name: float(value.split()[0]) * 1024 for name, value in (line.split(":") for line in lines) if value.split()}
        return min(found["MemAvailable"], _limit())
    except (OSError, KeyError, ValueError):  # no Linux
        return float(MOST / SHARE)


def _limit() -> float:
    """Return what is left of the memory limit of the control group, such as a container's."""
    folder, left = Path("/sys/fs/cgroup"), math.inf
    with suppress(OSError, ValueError):  # no limit, which is called "max"
        left = float((folder / "memory.max").read_text()) - float((folder / "memory.current").read_text())
    return max(left, 0.0)
