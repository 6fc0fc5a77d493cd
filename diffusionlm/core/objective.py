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
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from diffusionlm.config import Component, UserError, plain_name
from diffusionlm.core.model import DiffusionLM, ModelConfig
from diffusionlm.core.schedule import Gumbel
from diffusionlm.data.batches import collate
from diffusionlm.models.spec import ModelSpec

M = TypeVar("M", bound=ModelSpec)
CLOZE_SHARE = 0.5

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
        self_conditioning_share: of those texts, denoised twice, the second time given the first estimate.
        cloze_share: of the texts, whose words are clean and each predicted from the others, its own evidence left out. Needs a
            backbone that leaves out a word's own vector; empty is half of the texts where it does, and none where it does not.
        cloze_hidden: of a cloze's words, at most this share is hidden from the others, as pure noise; how many is drawn anew.
    """

    mixed_share: float = 0.7
    self_conditioning_share: float = 0.9
    cloze_share: float | None = None
    cloze_hidden: float = 0.3

    def __post_init__(self) -> None:
        """Check the shares."""
        for name in ("mixed_share", "self_conditioning_share", "cloze_share", "cloze_hidden"):
            if (share := getattr(self, name)) is not None and not 0 <= share <= 1:
                raise UserError(f"{name}: expected a share between 0 and 1, got {share}")

    def check(self, model: ModelSpec) -> None:
        """Check that the model gives logits."""
        settings = expect_kind(self, model, ModelConfig)
        if settings.prediction != "logits":
            raise UserError(f"objective: 'cross-entropy' needs model.prediction 'logits', got {settings.prediction!r}")
        if self.cloze_share and not settings.backbone.excludes_self:
            raise UserError(
                f"objective.cloze_share: needs a backbone that leaves out a word's own vector, such as 'leave-one-out', "
                f"got {settings.backbone.name!r}; leave it empty"
            )

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
        excludes_self = model.settings.backbone.excludes_self
        self.cloze_share = (CLOZE_SHARE if excludes_self else 0.0) if spec.cloze_share is None else spec.cloze_share
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
        cloze, noisy, evidence_mask = torch.zeros_like(mixed), free, None
        if self.cloze_share:
            cloze = torch.rand(B, device=ids.device) < self.cloze_share
            hidden = torch.rand(B, L, device=ids.device) < self.spec.cloze_hidden * torch.rand(B, 1, device=ids.device)
            t = torch.where(cloze[:, None], 1.0, t)
            noisy, evidence_mask = free & (hidden | ~cloze[:, None]), ~cloze[:, None]
        x0 = self.model.embed(ids)
        xt = torch.where(noisy[..., None], self.model.diffusion.noise(x0, t), x0)
        t = torch.where(noisy, t, 0)
        attend = None if bool(mask.all()) else mask
        logits = self.model.token_logits(xt, t, attend, self._first_estimate(xt, t, attend, ~cloze), evidence_mask)
        losses = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(B, L) * free
        terms = {"cross_entropy": losses.sum() / free.sum()}
        if self.curve is not None:
            by_text_loss = losses.detach().sum(1) / free.sum(1).clamp(min=1)
            gamma = self.model.diffusion.schedule.gamma(t).float().where(free, 0).sum(1) / free.sum(1).clamp(min=1)
            level = ~(mixed | cloze)
            terms["schedule"] = ((by_text_loss - self._fitted(gamma)) ** 2 * level).sum() / level.sum().clamp(min=1)
            if self.training:
                self._remember(gamma, by_text_loss, level)
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

    def _first_estimate(self, xt: Tensor, t: Tensor, mask: Tensor | None, among: Tensor) -> Tensor | None:
        """Denoise a share of the texts ``among`` (B,) once without gradient; the others' estimate is 0."""
        count = round(self.spec.self_conditioning_share * len(xt))
        if not (self.model.settings.self_conditioning and count):
            return None
        rows = torch.randperm(len(xt), device=xt.device)[:count]
        rows = rows[among[rows]]
        estimate = torch.zeros_like(xt)
        if not len(rows):
            return estimate
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
