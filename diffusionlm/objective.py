"""Training objectives: one module per loss; a batch in, named terms out, their sum is what is minimised.

A batch has ``ids`` (B, L) and ``mask`` (B, L), True at real tokens, and what an objective's ``collate`` adds to them. An
objective is a module that holds the model (and whatever else it learns), so that one forward covers every parameter: DDP
and ``torch.compile`` need nothing more. All draws come from torch's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from diffusionlm.config import Component, UserError, plain_name
from diffusionlm.data import collate
from diffusionlm.diffusion import Gaussian, GaussianDiffusion, over_coordinates, sigma
from diffusionlm.model import DiffusionLM, ModelConfig
from diffusionlm.sampling import Denoised, reverse_step
from diffusionlm.schedule import Gumbel, StepSchedule
from diffusionlm.spec import ModelSpec

M = TypeVar("M", bound=ModelSpec)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Objective(nn.Module):
    """Base of the objectives' modules, for every kind of model.

    Batches are padded with ``pad_id`` to their longest row, or to ``width`` tokens where PAD is a word like others.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int, width: int | None = None) -> None:
        """Hold the model that is trained."""
        super().__init__()
        self.model, self.pad_id, self.width = model, pad_id, width

    def collate(self, rows: Sequence[list[int]]) -> dict[str, Tensor]:
        """Make a batch, the arguments of ``forward``, of rows of token ids."""
        batch = collate(rows, self.pad_id, self.width)
        return batch if self.width is None else {**batch, "mask": torch.ones_like(batch["mask"])}

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the scalar terms of the loss for ``ids`` (B, L)."""
        raise NotImplementedError

    def finish(self) -> None:
        """Write what was learned beside the weights into the model's config."""

    def figures(self, held_out: Sequence[list[int]] = ()) -> dict[str, Figure]:
        """Draw what the log's numbers do not show, by name; called at evaluations, where matplotlib is installed."""
        return {}

    def report(self, held_out: Sequence[list[int]], folder: Path) -> str:
        """Measure the trained model on ``held_out`` rows, write what was found into the run's ``folder``, tell it in words."""
        return ""


class ObjectiveConfig(Component, family="objective"):
    """Base of the objectives' specs."""

    def check(self, model: ModelSpec) -> None:
        """Check that the objective trains such models.

        Raises:
            UserError: it trains another kind of model, or the model's settings do not go with it.
        """
        raise NotImplementedError

    def build(self, model: Any) -> Objective:
        """Make the module for a model of the kind that it trains.

        Raises:
            UserError: the model's settings do not go with this objective.
        """
        raise NotImplementedError


def expect_kind(objective: ObjectiveConfig, model: ModelSpec, kind: type[M]) -> M:
    """Return ``model`` where it is of the kind that the objective trains.

    Raises:
        UserError: it is of another kind.
    """
    if not isinstance(model, kind):
        wanted, got = plain_name(kind), plain_name(type(model))
        name = plain_name(type(objective))
        raise UserError(f"objective: {name!r} trains a {wanted!r} model, and model is {got!r}: name the objective for it too")
    return model


class DiffusionObjective(Objective):
    """Base of the diffusion models' objectives."""

    model: DiffusionLM

    def __init__(self, model: DiffusionLM) -> None:
        """Pad to the model's width where it models PAD."""
        width = None if model.settings.explicit_length else model.config.max_tokens
        super().__init__(model, model.config.special_ids["pad"], width)


@dataclass(frozen=True)
class CrossEntropy(ObjectiveConfig, name="cross-entropy"):
    """Mean cross-entropy of the words at noise levels drawn from the schedule's density.

    Args:
        mixed_share: of the texts, whose every position gets a noise level of its own; the others have one level. Neighbours
            at mixed levels, a soft form of masked language modelling, are what makes a small network use context early.
        self_conditioning_share: of the texts, denoised twice, the second time given the first estimate.
    """

    mixed_share: float = 0.7
    self_conditioning_share: float = 0.9

    def __post_init__(self) -> None:
        """Check the shares."""
        for name in ("mixed_share", "self_conditioning_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}: expected a share between 0 and 1, got {getattr(self, name)}")

    def check(self, model: ModelSpec) -> None:
        """Check that the model gives logits."""
        prediction = expect_kind(self, model, ModelConfig).prediction
        if prediction != "logits":
            raise UserError(f"objective: 'cross-entropy' needs model.prediction 'logits', got {prediction!r}")

    def build(self, model: DiffusionLM) -> DiffusionObjective:
        """Make the module."""
        self.check(model.settings)
        return CrossEntropyObjective(self, model)


class CrossEntropyObjective(DiffusionObjective):
    """The module of ``CrossEntropy``; it also fits the ``gumbel`` schedule's curve to the cross-entropy it sees.

    ``seen`` (2, BINS) holds texts and the sum of their cross-entropies by gamma, over about the last 100 batches.
    """

    BINS = 48
    seen: Tensor

    def __init__(self, spec: CrossEntropy, model: DiffusionLM) -> None:
        """Take the schedule's parameters from the model."""
        super().__init__(model)
        self.spec = spec
        schedule = model.settings.schedule
        self.curve: nn.Parameter | None = None
        if isinstance(schedule, Gumbel):
            self.curve = nn.Parameter(torch.tensor([schedule.location, math.log(schedule.scale), schedule.entropy]))
        self.register_buffer("seen", torch.zeros(2, self.BINS), persistent=False)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return ``cross_entropy`` (nats a token, not a likelihood) and ``schedule``, the curve's squared error."""
        self.finish()
        special = self.model.config.special_ids
        boundary = (ids == special["start"]) | (ids == special["end"])
        free = mask & ~boundary if self.model.settings.explicit_length else mask
        B, L = ids.shape
        mixed = torch.rand(B, device=ids.device) < self.spec.mixed_share
        # Stratified over the batch, which halves the variance of the loss (Kingma et al. 2021, appendix I.1).
        by_text, by_position = (torch.randperm(n, device=ids.device) for n in (B, B * L))
        u_text = (by_text + torch.rand(B, device=ids.device)) / B
        u_position = (by_position + torch.rand(B * L, device=ids.device)).view(B, L) / (B * L)
        t = self.model.diffusion.schedule.training_times(torch.where(mixed[:, None], u_position, u_text[:, None]))
        x0 = self.model.embed(ids)
        xt = torch.where(free[..., None], self.model.diffusion.noise(x0, t), x0)
        t = torch.where(free, t, 0)
        attend = None if bool(mask.all()) else mask
        logits = self.model.token_logits(xt, t, attend, self._first_estimate(xt, t, attend))
        losses = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(B, L) * free
        terms = {"cross_entropy": losses.sum() / free.sum()}
        if self.curve is not None:
            by_text_loss = losses.detach().sum(1) / free.sum(1).clamp(min=1)
            gamma = self.model.diffusion.schedule.gamma(t).float().where(free, 0).sum(1) / free.sum(1).clamp(min=1)
            terms["schedule"] = ((by_text_loss - self._fitted(gamma)) ** 2 * ~mixed).sum() / (~mixed).sum().clamp(min=1)
            if self.training:
                self._remember(gamma, by_text_loss, ~mixed)
        return terms

    def _fitted(self, gamma: Tensor) -> Tensor:
        assert self.curve is not None
        location, log_scale, entropy = self.curve
        return entropy * torch.exp(-torch.exp(-(gamma - location) / log_scale.exp()))

    @torch.no_grad()
    def _remember(self, gamma: Tensor, losses: Tensor, counted: Tensor) -> None:
        """Add texts' levels (B,) and losses (B,) to what was seen, and forget a hundredth of the rest."""
        low, high = self._gammas()
        bins = ((gamma - low) / (high - low) * self.BINS).long().clamp(0, self.BINS - 1)
        self.seen.mul_(0.99).index_add_(1, bins, torch.stack([counted.to(losses), losses * counted]).to(self.seen))

    def _gammas(self) -> tuple[float, float]:
        schedule = self.model.settings.schedule
        assert isinstance(schedule, Gumbel)
        return schedule.low, schedule.high

    def figures(self, held_out: Sequence[list[int]] = ()) -> dict[str, Figure]:
        """Draw the learned schedule's fit: cross-entropy against gamma, and the curve."""
        if self.curve is None:
            return {}
        from diffusionlm.plots import schedule_fit

        low, high = self._gammas()
        texts, losses = self.seen.cpu()
        middles = low + (torch.arange(self.BINS) + 0.5) * (high - low) / self.BINS
        known = texts > 1e-3
        xs = torch.linspace(low, high, 200)
        with torch.no_grad():
            ys = self._fitted(xs.to(self.curve)).cpu()
        return {
            "schedule": schedule_fit(
                middles[known].tolist(),
                (losses[known] / texts[known]).tolist(),
                (texts[known] / texts.sum()).tolist(),
                list(zip(xs.tolist(), ys.tolist(), strict=True)),
            )
        }

    def _first_estimate(self, xt: Tensor, t: Tensor, mask: Tensor | None) -> Tensor | None:
        """Denoise a share of the texts once without gradient; the others' estimate is 0."""
        count = round(self.spec.self_conditioning_share * len(xt))
        if not (self.model.settings.self_conditioning and count):
            return None
        rows = torch.randperm(len(xt), device=xt.device)[:count]
        estimate = torch.zeros_like(xt)
        with torch.no_grad():
            estimate[rows] = self.model(xt[rows], t[rows], None if mask is None else mask[rows]).x0
        return estimate

    def finish(self) -> None:
        """Write the fitted curve into the model's schedule."""
        schedule = self.model.settings.schedule
        if self.curve is not None and isinstance(schedule, Gumbel):
            location, log_scale, entropy = self.curve.detach().tolist()
            fitted = {"location": location, "scale": max(math.exp(log_scale), 1e-2), "entropy": entropy}
            self.model.set_schedule(Gumbel(**{**vars(schedule), **fitted}))


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
