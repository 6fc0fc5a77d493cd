"""The score-based view: the slope of the log density of noisy vectors, in terms of the predicted x_0.

    s(x, t) = d log p_t(x) / dx = (alpha x0(x, t) - x) / sigma^2 = -eps(x, t) / sigma              for any process
    div f = E[v . J v],  J = df / dx,  E[v v^T] = I                                                (Hutchinson 1990)

The first line is Tweedie's formula, so a denoiser is a score model and needs no other network. The second estimates a
divergence, such as that of the score or of the probability flow, with one backward pass per probe v.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusionlm.core.process import Process
from diffusionlm.core.schedule import NoiseSchedule


def score(process: Process, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
    """Return the score at ``xt`` (B, L, D), where ``x0`` is predicted; t > 0."""
    _, sigma = process.signal_and_noise(xt, t)
    return -process.eps_from_x0(x0, xt, t) / sigma


def lowest_time(schedule: NoiseSchedule) -> Tensor:
    """Return the lowest time at which samplers evaluate the network: it was not trained at 0, where gamma may be infinite."""
    return schedule.sampling_times(schedule.max_steps)[-2]


def rademacher(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return probes of independent signs, which have the least variance of those with independent coordinates."""
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)


def divergence(
    function: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor, differentiable: bool = False
) -> tuple[Tensor, Tensor]:
    """Return ``function`` (B, ...) at ``x`` and v . J v (B,) of the ``probes`` v, an estimate of its divergence.

    ``differentiable`` keeps the graph of both, to train what they depend on.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = function(x)
        (slope,) = torch.autograd.grad((value * probes).sum(), x, create_graph=differentiable)
        along = (slope * probes).flatten(1).sum(1)
    return (value, along) if differentiable else (value.detach(), along.detach())
