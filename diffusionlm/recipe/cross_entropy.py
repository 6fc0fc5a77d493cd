"""Cross-entropy of the tokens under noise: the default objective, with masked-token prediction and mixed noise levels.

Its weighting over noise levels is the density of the learned schedule (``gumbel``), whose curve it fits. Shapes: B batch, L
positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusionlm.config import UserError
from diffusionlm.core.objective import Batch, Objective, ObjectiveConfig, expect_family
from diffusionlm.recipe.gumbel import Gumbel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLOZE_SHARE = 0.5
VALIDATION_GAMMAS = (-1.0, 9.0)  # words are decided at less noise, and nothing is known of them at more


@dataclass(frozen=True)
class CrossEntropy(ObjectiveConfig, name="cross-entropy"):
    """Mean cross-entropy of the tokens at noise levels drawn from the schedule's density.

    Args:
        mixed_share: share of the texts in which every position has its own noise level; the others have one level. Mixed
            levels, a soft form of masked language modelling, make a small network use context early in training.
        self_conditioning_share: share of the texts that are denoised twice, the second time with the first estimate.
        cloze_share: share of the texts with clean tokens, each predicted from the others without its token likelihood term.
            Needs a backbone that excludes a position's own input; empty is half with such a backbone, else none.
        cloze_hidden: the largest share of a cloze's tokens that are replaced by pure noise; the share is drawn uniformly.
    """

    mixed_share: float = 0.7
    self_conditioning_share: float = 0.9
    cloze_share: float | None = None
    cloze_hidden: float = 0.3

    def __post_init__(self) -> None:
        self.expect("a share between 0 and 1", "mixed_share", "self_conditioning_share", "cloze_share", "cloze_hidden")

    def check(self, model: Any) -> None:
        expect_family(self, model, "diffusion")
        if not model.has_logits:
            raise UserError(f"objective: 'cross-entropy' needs model.prediction 'logits', got {model.prediction!r}")
        if self.cloze_share and not model.excludes_self:
            raise UserError(
                f"objective.cloze_share: needs a backbone that excludes a position's own input, such as 'leave-one-out', "
                f"got {model.backbone.name!r}; leave it empty"
            )

    def build(self, model: Any) -> CrossEntropyObjective:
        self.check(model.settings)
        return CrossEntropyObjective(self, model)


class CrossEntropyObjective(Objective):
    """The module of ``CrossEntropy``, which also fits the curve of the ``gumbel`` schedule.

    ``seen`` (2, BINS) holds the number of texts and the sum of their cross-entropies by gamma, over about 100 batches.
    """

    BINS = 48
    ranks = True
    seen: Tensor

    def __init__(self, spec: CrossEntropy, model: Any) -> None:
        super().__init__(model, model.config.special_ids["pad"], model.padded_width)
        self.spec = spec
        self.cloze_share = (CLOZE_SHARE if model.excludes_self else 0.0) if spec.cloze_share is None else spec.cloze_share
        schedule = model.settings.schedule
        self.curve: nn.Parameter | None = None
        if isinstance(schedule, Gumbel):
            self.curve = nn.Parameter(torch.tensor([schedule.location, math.log(schedule.scale), schedule.entropy]))
        self.register_buffer("seen", torch.zeros(2, self.BINS), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``cross_entropy`` (nats per token, not a likelihood) and ``schedule``, the curve's squared error."""
        self.finish()
        ids, free = batch.ids, self.model.free_positions(batch)
        t, mixed, cloze, hidden = self._draw_levels(ids)
        noisy, evidence_mask = free & (hidden | ~cloze[:, None]), ~cloze[:, None] if self.cloze_share else None
        _, xt, t = self._noised(ids, t, noisy)
        condition, terms = self.conditioning(batch)
        free = free & batch.mask  # a source may take positions from a text's padding
        estimate = self._first_estimate(xt, t, batch, condition, ~cloze)
        losses = self.model.token_losses(ids, xt, t, batch.attend, estimate, evidence_mask, condition) * free
        terms = {"cross_entropy": losses.sum() / free.sum(), **terms}
        if self.curve is not None:
            terms["schedule"] = self._schedule_loss(losses.detach(), t, free, ~(mixed | cloze))
        return terms

    @torch.no_grad()
    def validation_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``bound``, the diffusion term of the likelihood bound in nats per token, at a fixed grid of noise levels.

        Each text has one level: the middles of equal intervals of ``VALIDATION_GAMMAS``, in a random order. They depend on no
        schedule, so that steps, runs and schedules can be compared (see ``evaluation.likelihood``, and Kingma et al. 2021,
        equation 15). The network denoises twice, as in sampling.
        """
        ids, free = batch.ids, self.model.free_positions(batch)
        B, device = len(ids), ids.device
        low, high = VALIDATION_GAMMAS
        gamma = low + (high - low) * (torch.randperm(B, device=device) + 0.5) / B
        x0, xt, t = self._noised(ids, self.model.process.schedule.time(gamma)[:, None].expand(ids.shape), free)
        condition, terms = self.conditioning(batch)
        free = free & batch.mask
        inputs = (xt, t, batch.attend)
        previous = self.model.estimate(*inputs, None, None, condition) if self.model.self_conditions else None
        squares = (self.model.estimate(*inputs, previous, None, condition) - x0).square().sum(-1)
        weight = 0.5 * (high - low) * torch.exp(-gamma)[:, None]
        return {"bound": (weight * squares * free).sum() / free.sum(), **terms}

    def _noised(self, ids: Tensor, t: Tensor, noisy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the word vectors (B, L, D) of ``ids``, these with noise where ``noisy``, and its times (B, L), 0 elsewhere."""
        x0 = self.model.encode(ids)
        xt = torch.where(noisy[..., None], self.model.process.noise(x0, t), self.model.process.rescale(x0, 0.0))
        return x0, xt, torch.where(noisy, t, 0)

    def _draw_levels(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw times (B, L); which texts have mixed levels (B,), which are clozes (B,), and their hidden words (B, L)."""
        (B, L), device = ids.shape, ids.device
        mixed = torch.rand(B, device=device) < self.spec.mixed_share
        # Stratified over the batch, which halves the variance of the loss (Kingma et al. 2021, appendix I.1).
        by_text, by_position = (torch.randperm(n, device=device) for n in (B, B * L))
        u_text = (by_text + torch.rand(B, device=device)) / B
        u_position = (by_position + torch.rand(B * L, device=device)).view(B, L) / (B * L)
        t = self.model.process.schedule.training_times(torch.where(mixed[:, None], u_position, u_text[:, None]))
        if not self.cloze_share:
            return t, mixed, torch.zeros_like(mixed), torch.zeros_like(ids, dtype=torch.bool)
        cloze = torch.rand(B, device=device) < self.cloze_share
        hidden = torch.rand(B, L, device=device) < self.spec.cloze_hidden * torch.rand(B, 1, device=device)
        return torch.where(cloze[:, None], 1.0, t), mixed, cloze, hidden

    def _schedule_loss(self, losses: Tensor, t: Tensor, free: Tensor, counted: Tensor) -> Tensor:
        """Return the mean squared error of the fitted curve over the texts ``counted`` (B,), which have one noise level."""
        count = free.sum(1).clamp(min=1)
        by_text = losses.sum(1) / count
        gamma = self.model.process.schedule.gamma(t).float().where(free, 0).sum(1) / count
        if self.training:
            self._remember(gamma, by_text, counted)
        return ((by_text - self._fitted(gamma)) ** 2 * counted).sum() / counted.sum().clamp(min=1)

    def _fitted(self, gamma: Tensor) -> Tensor:
        assert self.curve is not None
        location, log_scale, entropy = self.curve
        return entropy * torch.exp(-torch.exp(-(gamma - location) / log_scale.exp()))

    @torch.no_grad()
    def _remember(self, gamma: Tensor, losses: Tensor, counted: Tensor) -> None:
        """Add the levels (B,) and losses (B,) of texts to ``seen``, whose old content decays by a hundredth."""
        low, high = self._gammas()
        bins = ((gamma - low) / (high - low) * self.BINS).long().clamp(0, self.BINS - 1)
        self.seen.mul_(0.99).index_add_(1, bins, torch.stack([counted.to(losses), losses * counted]).to(self.seen))

    def _gammas(self) -> tuple[float, float]:
        schedule = self.model.settings.schedule
        assert isinstance(schedule, Gumbel)
        return schedule.low, schedule.high

    def figures(self, held_out: Sequence[list[int]] = ()) -> dict[str, Figure]:
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

    def _first_estimate(self, xt: Tensor, t: Tensor, batch: Batch, condition: Any, among: Tensor) -> Tensor | None:
        """Return the estimates of x_0 (B, L, D) of a share of the texts ``among`` (B,), without gradient; 0 for the others."""
        count = round(self.spec.self_conditioning_share * len(xt))
        if not (self.model.self_conditions and count):
            return None
        rows = torch.randperm(len(xt), device=xt.device)[:count]
        rows = rows[among[rows]]
        estimate = torch.zeros_like(xt)
        if not len(rows):
            return estimate
        with torch.no_grad():
            mask = None if batch.attend is None else batch.mask[rows]
            estimate[rows] = self.model.estimate(
                xt[rows], t[rows], mask, None, None, condition and condition.rows(rows)
            )  # fmt: skip
        return estimate

    def finish(self) -> None:
        schedule = self.model.settings.schedule
        if self.curve is not None and isinstance(schedule, Gumbel):
            location, log_scale, entropy = self.curve.detach().tolist()
            fitted = {"location": location, "scale": max(math.exp(log_scale), 1e-2), "entropy": entropy}
            self.model.set_schedule(Gumbel(**{**vars(schedule), **fitted}))
