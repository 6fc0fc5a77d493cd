"""The cost of sampling: evaluations of the network, counted where they are made, and time. All reports use this meter.

An evaluation is a forward pass of ``BasePipeline.network`` for one sample: one of a batch of B counts B times, whatever makes
it (steps, passes, guidance, draft, sweeps, length prior, ranking, further tries).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusionlm.processes import counts, summed

if TYPE_CHECKING:
    from diffusionlm.pipelines.base import BasePipeline


@dataclass(frozen=True)
class Cost:
    """The mean cost of an output.

    ``evaluations`` are those of the network, for all ``candidates`` of an output; of an autoregressive model they are the
    decoder's, one for each token that its batch was continued by. Encoders of conditions are not counted. ``cpu_seconds`` are
    those of all processes that share the work, each with ``threads``, without an accelerator's; ``seconds`` are wall-clock
    time.
    """

    evaluations: float
    candidates: int
    cpu_seconds: float
    threads: int
    seconds: float | None = None  # None in reports that did not measure it

    @property
    def per_candidate(self) -> float:
        """The evaluations of a candidate."""
        return self.evaluations / self.candidates


@dataclass
class Meter:
    """What has been spent since ``metered`` began.

    ``backwards`` are the evaluations with a backward pass, ``classifications`` the evaluations of classifiers.
    """

    evaluations: int = 0
    backwards: int = 0
    classifications: int = 0
    cpu_seconds: float = 0.0
    seconds: float = 0.0

    def cost(self, outputs: int, candidates: int) -> Cost:
        """Return the cost of each of ``outputs``, which were chosen from as many times ``candidates``."""
        cpu, wall = (round(spent / outputs, 6) for spent in (self.cpu_seconds, self.seconds))
        return Cost(self.evaluations / outputs, candidates, cpu, torch.get_num_threads(), wall)


@contextmanager
def metered(pipeline: BasePipeline[Any] | None, classifiers: Sequence[nn.Module] = ()) -> Iterator[Meter]:
    """Count what the calls of a pipeline and of ``classifiers`` spend, without a pipeline the time alone.

    The times are there when the context ends.
    """
    meter, cpu, wall = Meter(), time.process_time(), time.perf_counter()

    def evaluated(network: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if counts():
            first = first_tensor(arguments, named)
            meter.evaluations += len(first)
            meter.backwards += len(first) * (torch.is_grad_enabled() and first.requires_grad)

    def classified(network: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        meter.classifications += len(first_tensor(arguments, named)) * counts()

    hooks = [] if pipeline is None else [(pipeline.network, evaluated)]
    with ExitStack() as stack:
        for network, hook in [*hooks, *((each, classified) for each in classifiers)]:
            stack.enter_context(nn.Module.register_forward_pre_hook(network, hook, with_kwargs=True))
        yield meter
    spent = (meter.evaluations, meter.backwards, meter.classifications, time.process_time() - cpu)
    evaluations, backwards, classifications, meter.cpu_seconds = summed(spent)
    meter.evaluations, meter.backwards, meter.classifications = int(evaluations), int(backwards), int(classifications)
    meter.seconds = time.perf_counter() - wall


def first_tensor(arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """Return the first tensor among the arguments of a network, which has a row for each sample."""
    return next(each for each in [*arguments, *named.values()] if isinstance(each, Tensor))
