"""The cost of sampling: evaluations of the network, counted where they are made, and CPU time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusionlm.pipelines.base import BasePipeline


@dataclass(frozen=True)
class Cost:
    """The mean cost of an output.

    ``evaluations`` are those of the network: one of a batch of B samples counts B times. They are of all ``candidates`` of an
    output, over all steps, passes and sweeps, with and without a condition; of an autoregressive model they are the decoder's,
    one for each token that its batch was continued by. Encoders of conditions are not counted. ``cpu_seconds`` are those of
    this process, all ``threads`` together; an accelerator's time is not in them.
    """

    evaluations: float
    candidates: int
    cpu_seconds: float
    threads: int

    @property
    def per_candidate(self) -> float:
        """The evaluations of a candidate."""
        return self.evaluations / self.candidates


@dataclass
class Meter:
    """What has been spent since ``metered`` began."""

    evaluations: int = 0
    cpu_seconds: float = 0.0

    def cost(self, outputs: int, candidates: int) -> Cost:
        """Return the cost of each of ``outputs``, which were chosen from as many times ``candidates``."""
        seconds = round(self.cpu_seconds / outputs, 6)
        return Cost(self.evaluations / outputs, candidates, seconds, torch.get_num_threads())


@contextmanager
def metered(pipeline: BasePipeline[Any]) -> Iterator[Meter]:
    """Count what the calls of a pipeline spend; the meter is complete when the context ends."""
    meter, begun = Meter(), time.process_time()

    def count(network: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        meter.evaluations += len(next(each for each in [*arguments, *named.values()] if isinstance(each, Tensor)))

    with pipeline.network.register_forward_pre_hook(count, with_kwargs=True):
        yield meter
    meter.cpu_seconds = time.process_time() - begun
