"""What a call of the diffusion pipeline asks for, compiled and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from diffusionlm.pipelines.base import SamplingConfig, Watch
from diffusionlm.pipelines.conditioning import Requested
from diffusionlm.pipelines.steering import Steering


@dataclass(frozen=True)
class Request:
    """What the batches of one call share: settings, compiled controls, length priors, conditions, callback.

    ``conditions`` has a value for each ``count`` consecutive samples, and ``priors`` a length prior for each value. Texts
    that are edited are noised to time ``level``; those that are continued begin with the ids ``begun``.
    """

    sampling: SamplingConfig
    steering: Steering
    priors: Callable[[int], Sequence[float]]
    conditions: Sequence[Requested]
    count: int
    watch: Watch | None = None
    level: float = 1.0
    begun: tuple[int, ...] = ()


def from_level(sampling: SamplingConfig, level: float) -> SamplingConfig:
    """Return the settings of an edit from ``level``, 0 to 1: from a lower level there are fewer steps and sweeps."""
    return replace(sampling, steps=max(1, round(level * sampling.steps)), sweeps=round(level * sampling.sweeps))
