"""Diffusion-LM's own objective and DDPM's: regression of vectors, or the terms of their variational bound.

    L = sum_t E |x_0 - x0-hat(x_t, t)|^2  +  E -log p(w | x_0)  +  |alpha_1 x_0|^2          (Li et al. 2022, section 4.2)

with q(x_0 | w) around the word's vector; the bound in nats is ``bound_term``'s mean over t, times T, and the prior's KL.
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
from diffusionlm.core.process import Gaussian, Process
from diffusionlm.core.sampler import Denoised, reverse_step
from diffusionlm.core.schedule import StepSchedule


@dataclass(frozen=True)
class Regression(ObjectiveConfig, name="regression"):
    """Diffusion-LM's end-to-end objective and DDPM's: regress the model's target, and keep words apart by rounding.

    With q(x_0 | w) = N(E_w, sigma_0^2 I) and x_0 sampled (Li et al. 2022, section 4.1 and the released code): the
    regression of the model's ``prediction`` (x_0, eps or v; against E_w itself at the lowest level), the cross-entropy
    of rounding the sampled x_0 (it never touches the network), and the prior term, mean of (alpha_T x_0)^2.

    Args:
        loss: of the regression; ``vlb`` is the variational bound's term, a KL in nats a coordinate (DDPM, equation 5).
        times: ``importance`` draws t by the root of its losses' mean square (Improved DDPM, section 3.3).
        variance: of the reverse steps in ``vlb``, and in the hybrid loss that trains learned variances beside the others.
        vlb_weight: of the bound in that hybrid loss (Improved DDPM, section 3.1, where it is .001).
    """

    loss: Literal["l2", "l1", "huber", "vlb"] = "l2"
    times: Literal["uniform", "importance"] = "uniform"
    variance: Literal["posterior", "upper", "learned"] = "posterior"
    vlb_weight: float = 1e-3

    def check(self, model: Any) -> None:
        """Check that the model gives vectors, and its schedule has steps."""
        expect_family(self, model, "diffusion")
        if model.has_logits:
            raise UserError("objective: 'regression' needs model.prediction 'x0', 'eps' or 'v', got 'logits'")
        if not isinstance(model.schedule, StepSchedule):
            raise UserError(f"objective: 'regression' needs a schedule of T steps, got {model.schedule.name!r}")
        if (self.variance == "learned") != model.learned_variance:
            raise UserError("objective.variance: 'learned' goes with model.learned_variance true, and only with it")

    def build(self, model: Any) -> VariationalObjective:
        """Make the module."""
        self.check(model.settings)
        return VariationalObjective(self, model)


class VariationalObjective(EndToEnd):
    """The module of ``Regression``: the paper's terms, or those of the variational bound, or both (hybrid)."""

    def __init__(self, spec: Regression, model: Any) -> None:
        """Start with every time equally likely."""
        T = model.process.schedule.T
        super().__init__(
            model, model.config.special_ids["pad"], model.padded_width, T, "l2" if spec.loss == "vlb" else spec.loss
        )
        self.spec = spec
        self.importance = ImportanceTimes(T) if spec.times == "importance" else None

    def draw_times(self, count: int) -> tuple[Tensor, Tensor]:
        """Return ``count`` times and their weights in the loss."""
        return super().draw_times(count) if self.importance is None else self.importance.draw(count)

    def terms(
        self, denoised: Denoised, words: Tensor, x0: Tensor, xt: Tensor, t: Tensor, weight: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """Return the paper's terms, with the bound's in place of them or beside them."""
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
    """Return KL(q(x_1 | w) || N(0, I)) in nats a coordinate, per position (B, L), for word vectors (B, L, D)."""
    gamma = q.schedule.gamma(torch.ones((), dtype=torch.float64))
    variance = torch.sigmoid(gamma) + torch.sigmoid(-gamma) * lowest_deviation(q, T) ** 2
    last = Gaussian(float(torch.sigmoid(-gamma).sqrt()) * words, torch.full_like(words, float(variance)))
    return last.kl(Gaussian(torch.zeros_like(words), torch.ones_like(words))).mean(-1)


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
    """Return the variational bound's term at times ``t`` (B,), in nats a coordinate, per position (B, L).

    Above the lowest level, KL(q(x_s | x_t, x_0) || p(x_s | x_t)) with s = t - 1/T; at it, the reconstruction
    log q(x_0 | w) - log p(x_0 | x_t) - log p(w | x_0), where p(x_0 | x_t) has the second level's posterior variance
    (Li et al. 2022, equation 2). T times its mean over t = 1/T, ..., 1, and the prior's KL, bound the likelihood.
    """
    s = ((t * T).round() - 1) / T
    lowest = (s <= 0)[:, None].to(t.device)
    t_safe, s_safe = torch.where(s <= 0, 2 / T, t), torch.where(s <= 0, 1 / T, s)
    believed = reverse_step(q, denoised, xt, t_safe, s_safe, variance)
    kl = q.posterior(x0, xt, t_safe, s_safe).kl(believed).mean(-1)
    deviation = lowest_deviation(q, T)
    encoder = Gaussian(words, torch.full_like(words, deviation**2))
    decoder = Gaussian(denoised.x0, believed.variance.expand_as(x0))
    rounding = F.cross_entropy(model.decode(x0).transpose(1, 2), ids, reduction="none") / x0.shape[-1]
    reconstruction = (log_density(encoder, x0) - log_density(decoder, x0)).mean(-1) + rounding
    return torch.where(lowest, reconstruction, kl)


def log_density(gaussian: Gaussian, x: Tensor) -> Tensor:
    """Return the log density of ``x`` in nats, coordinate by coordinate."""
    return -0.5 * ((x - gaussian.mean) ** 2 / gaussian.variance + torch.log(2 * math.pi * gaussian.variance))


class ImportanceTimes(nn.Module):
    """Draws t = 1/T, ..., 1 in proportion to the root mean square of its last ten losses (Nichol and Dhariwal 2021).

    Its history is a buffer: it is saved and resumed with the run. Uniform until every time has been seen ten times.
    """

    losses: Tensor
    seen: Tensor

    def __init__(self, T: int, history: int = 10, uniform_share: float = 1e-3) -> None:
        """Start with nothing seen."""
        super().__init__()
        self.uniform_share = uniform_share
        self.register_buffer("losses", torch.zeros(T, history))
        self.register_buffer("seen", torch.zeros(T, dtype=torch.long))

    def probabilities(self) -> Tensor:
        """Return the chance of each time (T,)."""
        T, history = self.losses.shape
        if bool((self.seen < history).any()):
            return torch.full((T,), 1 / T)
        root = self.losses.square().mean(1).sqrt()
        return (1 - self.uniform_share) * root / root.sum() + self.uniform_share / T

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Return ``count`` times and the weights 1 / (T p) that keep the mean loss unbiased."""
        chances = self.probabilities()
        index = torch.multinomial(chances, count, replacement=True)
        return (index + 1).double() / len(chances), 1 / (len(chances) * chances[index])

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Remember ``losses`` (B,) at times ``t`` (B,), each in place of that time's oldest."""
        T, history = self.losses.shape
        for index, loss in zip(((t * T).round().long() - 1).tolist(), losses.tolist(), strict=True):
            self.losses[index, self.seen[index] % history] = loss
            self.seen[index] += 1
