"""The paper's objective with DDPM's variants: other losses, the variational bound, learned variances, importance-sampled times.

The bound in nats is T times the mean of ``bound_term`` over t = 1/T, ..., 1, plus ``prior_kl``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusionlm.config import UserError
from diffusionlm.core.objective import Batch, EndToEnd, ObjectiveConfig, expect_family, lowest_deviation
from diffusionlm.core.process import Gaussian, Process, VariancePreserving
from diffusionlm.core.sampler import Denoised, reverse_step
from diffusionlm.core.schedule import StepSchedule


@dataclass(frozen=True)
class Regression(ObjectiveConfig, name="regression"):
    """Diffusion-LM's end-to-end objective (``core.objective.EndToEnd``) and DDPM's.

    Args:
        loss: that of the regression; ``vlb`` is the term of the variational bound, in nats per coordinate (DDPM, equation 5).
        times: ``importance`` draws t in proportion to the root mean square of its losses (Improved DDPM, section 3.3).
        variance: that of the reverse steps in ``vlb``; ``learned`` also adds the bound to the other losses (hybrid loss).
        vlb_weight: weight of the bound in the hybrid loss (Improved DDPM, section 3.1).
    """

    loss: Literal["l2", "l1", "huber", "vlb"] = "l2"
    times: Literal["uniform", "importance"] = "uniform"
    variance: Literal["posterior", "upper", "learned"] = "posterior"
    vlb_weight: float = 1e-3

    def __post_init__(self) -> None:
        self.expect("0 or more", "vlb_weight")

    def check(self, model: Any) -> None:
        expect_family(self, model, "diffusion")
        if model.has_logits:
            raise UserError("objective: 'regression' needs model.prediction 'x0', 'eps' or 'v', got 'logits'")
        if not isinstance(model.schedule, StepSchedule):
            raise UserError(f"objective: 'regression' needs a schedule of T steps, got {model.schedule.name!r}")
        if (self.variance == "learned") != model.learned_variance:
            raise UserError("objective.variance: 'learned' goes with model.learned_variance true, and only with it")

    def build(self, model: Any) -> VariationalObjective:
        self.check(model.settings)
        return VariationalObjective(self, model)


class VariationalObjective(EndToEnd):
    """The module of ``Regression``: the paper's terms, or those of the variational bound, or both (hybrid)."""

    def __init__(self, spec: Regression, model: Any) -> None:
        T = model.process.schedule.T
        super().__init__(
            model, model.config.special_ids["pad"], model.padded_width, T, "l2" if spec.loss == "vlb" else spec.loss
        )
        self.spec = spec
        self.importance = ImportanceTimes(T) if spec.times == "importance" else None

    def draw_times(self, count: int) -> tuple[Tensor, Tensor]:
        return super().draw_times(count) if self.importance is None else self.importance.draw(count)

    def terms(
        self, denoised: Denoised, words: Tensor, x0: Tensor, xt: Tensor, t: Tensor, weight: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        process, T, share = self.model.process, self.T, batch.free / batch.free.sum()
        bound = partial(bound_term, process, T, words=words, x0=x0, xt=xt, t=t, ids=batch.ids, model=self.model)
        vlb = self.spec.loss == "vlb"
        losses = bound(denoised, variance=self.spec.variance) if vlb else self.regression(denoised, words, x0, xt, t)
        by_text = (losses * batch.free).sum(1) / batch.free.sum(1)
        if self.importance is not None and self.training:
            self.importance.update(t, by_text.detach())
        if vlb:
            return {"vlb": T * (by_text * weight).mean(), "prior": (prior_kl(process, T, words) * share).sum()}
        terms = super().terms(denoised, words, x0, xt, t, weight, batch)
        if self.spec.variance == "learned":
            frozen = replace(denoised, x0=denoised.x0.detach())
            vlb_terms = bound(frozen, variance="learned")
            terms["vlb"] = T * self.spec.vlb_weight * (vlb_terms * share * weight[:, None]).sum()
        return terms


def prior_kl(q: Process, T: int, words: Tensor) -> Tensor:
    """Return KL(q(x_1 | w) || N(0, I)) in nats per coordinate, for each position (B, L) of word vectors (B, L, D)."""
    gamma = q.schedule.gamma(torch.ones((), dtype=torch.float64))
    variance = torch.sigmoid(gamma) + torch.sigmoid(-gamma) * lowest_deviation(q, T) ** 2
    last = Gaussian(float(torch.sigmoid(-gamma).sqrt()) * words, torch.full_like(words, float(variance)))
    return kl(last, Gaussian(torch.zeros_like(words), torch.ones_like(words))).mean(-1)


def bound_term(
    q: Process,
    T: int,
    denoised: Denoised,
    words: Tensor,
    x0: Tensor,
    xt: Tensor,
    t: Tensor,
    ids: Tensor,
    variance: str,
    model: Any,
) -> Tensor:
    """Return the term of the variational bound at times ``t`` (B,), in nats per coordinate, for each position (B, L).

    Above the lowest level, KL(q(x_s | x_t, x_0) || p(x_s | x_t)) with s = t - 1/T; at it, the reconstruction
    log q(x_0 | w) - log p(x_0 | x_t) - log p(w | x_0), where p(x_0 | x_t) has the second level's posterior variance
    (Li et al. 2022, equation 2). T times its mean over t = 1/T, ..., 1, and the prior's KL, bound the likelihood.
    """
    xt, q = q.standardize(xt, q.schedule.gamma(t)), VariancePreserving(q.schedule)  # divergences do not depend on the scale
    s = ((t * T).round() - 1) / T
    lowest = (s <= 0)[:, None].to(t.device)
    t_safe, s_safe = torch.where(s <= 0, 2 / T, t), torch.where(s <= 0, 1 / T, s)
    reverse = reverse_step(q, denoised, xt, t_safe, s_safe, variance)
    divergence = kl(q.posterior(x0, xt, t_safe, s_safe), reverse).mean(-1)
    deviation = lowest_deviation(q, T)
    encoder = Gaussian(words, torch.full_like(words, deviation**2))
    decoder = Gaussian(denoised.x0, reverse.variance.expand_as(x0))
    rounding = F.cross_entropy(model.decode(x0).transpose(1, 2), ids, reduction="none") / x0.shape[-1]
    reconstruction = (log_density(encoder, x0) - log_density(decoder, x0)).mean(-1) + rounding
    return torch.where(lowest, reconstruction, divergence)


def kl(one: Gaussian, other: Gaussian) -> Tensor:
    """Return KL(one || other) in nats for each coordinate."""
    ratio = one.variance / other.variance
    return 0.5 * (ratio - 1 - ratio.log() + (one.mean - other.mean) ** 2 / other.variance)


def log_density(gaussian: Gaussian, x: Tensor) -> Tensor:
    """Return the log density of ``x`` in nats for each coordinate."""
    return -0.5 * ((x - gaussian.mean) ** 2 / gaussian.variance + torch.log(2 * math.pi * gaussian.variance))


class ImportanceTimes(nn.Module):
    """Draws t = 1/T, ..., 1 in proportion to the root mean square of its last ten losses (Nichol and Dhariwal 2021).

    The history is a buffer, saved and resumed with the run. Uniform until every time has ten losses.
    """

    losses: Tensor
    seen: Tensor

    def __init__(self, T: int, history: int = 10, uniform_share: float = 1e-3) -> None:
        super().__init__()
        self.uniform_share = uniform_share
        self.register_buffer("losses", torch.zeros(T, history))
        self.register_buffer("seen", torch.zeros(T, dtype=torch.long))

    def probabilities(self) -> Tensor:
        """Return the probability of each time (T,)."""
        T, history = self.losses.shape
        if bool((self.seen < history).any()):
            return torch.full((T,), 1 / T)
        root = self.losses.square().mean(1).sqrt()
        return (1 - self.uniform_share) * root / root.sum() + self.uniform_share / T

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Return ``count`` times and the weights 1 / (T p) that keep the mean loss unbiased."""
        probabilities = self.probabilities()
        index = torch.multinomial(probabilities, count, replacement=True)
        return (index + 1).double() / len(probabilities), 1 / (len(probabilities) * probabilities[index])

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Store ``losses`` (B,) at times ``t`` (B,), each in place of the oldest of its time."""
        T, history = self.losses.shape
        for index, loss in zip(((t * T).round().long() - 1).tolist(), losses.tolist(), strict=True):
            self.losses[index, self.seen[index] % history] = loss
            self.seen[index] += 1
