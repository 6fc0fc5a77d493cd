"""Diffusion-LM's own objective and DDPM's: regression of vectors, or the terms of their variational bound.

    L = sum_t E |x_0 - x0-hat(x_t, t)|^2  +  E -log p(w | x_0)  +  |alpha_1 x_0|^2          (Li et al. 2022, section 4.2)

with q(x_0 | w) around the word's vector; the bound in nats is ``bound_term``'s mean over t, times T, and the prior's KL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusionlm.config import UserError
from diffusionlm.core.model import DiffusionLM, ModelConfig
from diffusionlm.core.objective import DiffusionObjective, ObjectiveConfig, expect_kind
from diffusionlm.core.process import Gaussian, GaussianDiffusion, over_coordinates, sigma
from diffusionlm.core.sampler import Denoised, reverse_step
from diffusionlm.core.schedule import StepSchedule
from diffusionlm.models.spec import ModelSpec


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

    def check(self, model: ModelSpec) -> None:
        """Check that the model gives vectors, and its schedule has steps."""
        settings = expect_kind(self, model, ModelConfig)
        if settings.prediction == "logits":
            raise UserError("objective: 'regression' needs model.prediction 'x0', 'eps' or 'v', got 'logits'")
        if not isinstance(settings.schedule, StepSchedule):
            raise UserError(f"objective: 'regression' needs a schedule of T steps, got {settings.schedule.name!r}")
        if (self.variance == "learned") != settings.learned_variance:
            raise UserError("objective.variance: 'learned' goes with model.learned_variance true, and only with it")

    def build(self, model: DiffusionLM) -> DiffusionObjective:
        """Make the module."""
        self.check(model.settings)
        assert isinstance(model.settings.schedule, StepSchedule)
        return RegressionObjective(self, model, model.settings.schedule)


class RegressionObjective(DiffusionObjective):
    """The module of ``Regression``."""

    def __init__(self, spec: Regression, model: DiffusionLM, schedule: StepSchedule) -> None:
        """Start with every time equally likely."""
        super().__init__(model)
        self.spec, self.schedule = spec, schedule
        self.importance = ImportanceTimes(schedule.T) if spec.times == "importance" else None

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return ``regression`` (or ``vlb``), ``rounding`` and ``prior``, each a mean."""
        q, B, T = self.model.diffusion, len(ids), self.schedule.T
        words = self.model.embed(ids)
        x0 = words + lowest_deviation(q, self.schedule) * torch.randn_like(words)
        if self.importance is None:
            t, weight = q.schedule.training_times(torch.rand(B, device=ids.device, dtype=torch.float64)), torch.ones(B)
        else:
            t, weight = self.importance.draw(B)
        t, weight = t.to(ids.device), weight.to(ids.device)
        xt = q.noise(x0, t)
        attend = None if bool(mask.all()) else mask
        denoised = self.model(xt, t, attend)
        losses = self._loss(denoised, words, x0, xt, t, ids)
        by_text = (losses * mask).sum(1) / mask.sum(1)
        if self.importance is not None and self.training:
            self.importance.update(t, by_text.detach())
        share = mask / mask.sum()
        if self.spec.loss == "vlb":
            last = prior_kl(q, self.schedule, words)
            return {"vlb": T * (by_text * weight).mean(), "prior": (last * share).sum()}
        prior = (q.noise(x0, torch.ones_like(t), torch.zeros_like(x0)) ** 2).mean(-1)
        rounding = F.cross_entropy(self.model.round(x0).transpose(1, 2), ids, reduction="none")
        terms = {"rounding": (rounding * share).sum(), "prior": (prior * share).sum()}
        if self.spec.variance == "learned":
            frozen = Denoised(denoised.x0.detach(), denoised.logits, denoised.variance_share)
            bound = bound_term(q, self.schedule, frozen, words, x0, xt, t, ids, "learned", self.model)
            terms["vlb"] = T * self.spec.vlb_weight * (bound * share * weight[:, None]).sum()
        return {"regression": (by_text * weight).mean(), **terms}

    def _loss(self, denoised: Denoised, words: Tensor, x0: Tensor, xt: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Return the loss per position (B, L)."""
        if self.spec.loss == "vlb":
            return bound_term(
                self.model.diffusion, self.schedule, denoised, words, x0, xt, t, ids, self.spec.variance, self.model
            )
        q = self.model.diffusion
        match self.model.settings.prediction:
            case "eps":
                output, target = q.eps_from_x0(denoised.x0, xt, t), q.eps_from_x0(x0, xt, t)
            case "v":
                output, target = q.v_from_x0(denoised.x0, xt, t), q.v_from_x0(x0, xt, t)
            case _:
                lowest = over_coordinates(t <= 1 / self.schedule.T, x0) > 0
                output, target = denoised.x0, torch.where(lowest, words, x0)
        function: Any = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}[self.spec.loss]
        losses: Tensor = function(output, target, reduction="none").mean(-1)
        return losses


def lowest_deviation(q: GaussianDiffusion, schedule: StepSchedule) -> float:
    """Return sigma_0, the deviation of q(x_0 | w): the noise of the lowest level, t = 1/T."""
    return float(sigma(q.schedule.gamma(torch.tensor(1 / schedule.T, dtype=torch.float64))))


def prior_kl(q: GaussianDiffusion, schedule: StepSchedule, words: Tensor) -> Tensor:
    """Return KL(q(x_1 | w) || N(0, I)) in nats a coordinate, per position (B, L), for word vectors (B, L, D)."""
    gamma = q.schedule.gamma(torch.ones((), dtype=torch.float64))
    variance = torch.sigmoid(gamma) + torch.sigmoid(-gamma) * lowest_deviation(q, schedule) ** 2
    last = Gaussian(float(torch.sigmoid(-gamma).sqrt()) * words, torch.full_like(words, float(variance)))
    return last.kl(Gaussian(torch.zeros_like(words), torch.ones_like(words))).mean(-1)


def bound_term(
    q: GaussianDiffusion,
    schedule: StepSchedule,
    denoised: Denoised,
    words: Tensor,
    x0: Tensor,
    xt: Tensor,
    t: Tensor,
    ids: Tensor,
    variance: str,
    model: DiffusionLM,
) -> Tensor:
    """Return the variational bound's term at times ``t`` (B,), in nats a coordinate, per position (B, L).

    Above the lowest level, KL(q(x_s | x_t, x_0) || p(x_s | x_t)) with s = t - 1/T; at it, the reconstruction
    log q(x_0 | w) - log p(x_0 | x_t) - log p(w | x_0), where p(x_0 | x_t) has the second level's posterior variance
    (Li et al. 2022, equation 2). T times its mean over t = 1/T, ..., 1, and the prior's KL, bound the likelihood.
    """
    s = ((t * schedule.T).round() - 1) / schedule.T
    lowest = (s <= 0)[:, None].to(t.device)
    t_safe, s_safe = torch.where(s <= 0, 2 / schedule.T, t), torch.where(s <= 0, 1 / schedule.T, s)
    believed = reverse_step(q, denoised, xt, t_safe, s_safe, variance)
    kl = q.posterior(x0, xt, t_safe, s_safe).kl(believed).mean(-1)
    deviation = lowest_deviation(q, schedule)
    encoder = Gaussian(words, torch.full_like(words, deviation**2))
    decoder = Gaussian(denoised.x0, believed.variance.expand_as(x0))
    rounding = F.cross_entropy(model.round(x0).transpose(1, 2), ids, reduction="none") / x0.shape[-1]
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
