"""Score matching: to fit the score of a density to samples of it alone.

    explicit     1/2 E|s(x) - d log p(x) / dx|^2  =  E[ div s(x) + 1/2 |s(x)|^2 ] + constant                (Hyvärinen 2005)
    sliced       E[ v . d(v . s) / dx + 1/2 |s|^2 ],   E[v v^T] = I                                         (Song et al. 2019)
    denoising    1/2 E|s(x_0 + sigma eps) + eps / sigma|^2  =  the first, at p = p_sigma, + constant        (Vincent 2011)

Sliced score matching is the first with Hutchinson's estimate of the divergence. On words it is unbounded below: their vectors
are points, whose density is infinite. Here it is of x = x_0 + sigma eps at one fixed sigma, where it has the same minimum as
denoising score matching, to which it is equal up to the constant D / (2 sigma^2), but without knowing eps, and so with more
variance. All are multiplied by sigma^2, NCSN's weight, and divided by the number of coordinates.

Denoising score matching over a ladder of levels is NCSN's objective, sigma^2 |s + eps / sigma|^2 = |eps - eps(x, t)|^2: the
objective ``regression`` with ``prediction: eps`` (Song and Ermon 2019, equation 6), as in ``configs/ncsn.yaml``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusionlm.config import UserError
from diffusionlm.core.objective import Batch, Objective, ObjectiveConfig, expect_family
from diffusionlm.recipe.score import divergence, rademacher


def sliced(score: Callable[[Tensor], Tensor], x: Tensor, sigma: float, probes: int, free: Tensor | None = None) -> Tensor:
    """Return the sliced score matching loss of ``score`` at ``x`` (B, ..., D), times sigma^2, per coordinate.

    ``free`` (B, ...) are the positions that are modelled, by default all.
    """
    trained, counted = torch.is_grad_enabled(), torch.ones_like(x) if free is None else free[..., None].to(x).expand_as(x)
    found = []
    for _ in range(probes):
        slope, along = divergence(lambda x: score(x) * counted, x, rademacher(x) * counted, differentiable=trained)
        found.append(along.sum() + slope.square().sum() / 2)
    return sigma**2 * torch.stack(found).mean() / counted.sum()


@dataclass(frozen=True)
class SlicedScoreMatching(ObjectiveConfig, name="sliced-score-matching"):
    """Sliced score matching of texts at one noise level (Song et al. 2019, *Sliced Score Matching*, equation 8).

    The model is trained at this level only: it is the score of one density, not a sampler of texts from noise.

    Args:
        sigma: the noise, in units of a word vector's coordinate: exp(gamma / 2).
        probes: directions v per text; more have less variance, and cost as much again.
    """

    sigma: float = 0.5
    probes: int = 1

    def __post_init__(self) -> None:
        self.expect("a positive number", "sigma")
        self.expect("1 to 10000", "probes")

    def check(self, model: Any) -> None:
        expect_family(self, model, "diffusion")
        if model.embedding != "frozen":
            raise UserError(f"objective: {self.name!r} needs model.embedding 'frozen', data that stay, got {model.embedding!r}")
        for name in ("self_conditioning", "learned_variance"):
            if getattr(model, name):
                raise UserError(f"objective: {self.name!r} trains no {name}; set model.{name} false")
        low, high = (float(gamma) for gamma in model.schedule.gamma(torch.tensor([0.0, 1.0])))
        if not low <= 2 * math.log(self.sigma) <= high:
            ends = f"{math.exp(low / 2):.3g} to {math.exp(high / 2):.3g}"
            raise UserError(f"objective.sigma: expected {ends}, the levels of the schedule, got {self.sigma}")

    def build(self, model: Any) -> SlicedObjective:
        self.check(model.settings)
        return SlicedObjective(self, model)


class SlicedObjective(Objective):
    """The module of ``SlicedScoreMatching``."""

    def __init__(self, spec: SlicedScoreMatching, model: Any) -> None:
        super().__init__(model, model.config.special_ids["pad"], model.padded_width)
        self.spec = spec

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``score`` (no likelihood; negative where it is good), and ``rounding`` for a model without logits."""
        free, words, sigma = self.model.free_positions(batch), self.model.encode(batch.ids), self.spec.sigma
        condition, terms = self.conditioning(batch)
        x = words + sigma * torch.randn_like(words)
        terms = {"score": sliced(self.score_of(batch, condition), x, sigma, self.spec.probes, free), **terms}
        if not self.model.has_logits:
            losses = F.cross_entropy(self.model.decode(x).transpose(1, 2), batch.ids, reduction="none")
            terms["rounding"] = (losses * free).sum() / free.sum()
        return terms

    def score_of(self, batch: Batch, condition: Any) -> Callable[[Tensor], Tensor]:
        """Return the model's score of x_0 + sigma eps (B, L, D), with the given tokens of ``batch`` clean."""
        process, sigma = self.model.process, self.spec.sigma
        free, words = self.model.free_positions(batch), self.model.encode(batch.ids)
        level = process.schedule.time(torch.tensor(2 * math.log(sigma), dtype=torch.float64)).to(words.device)
        times, clean = torch.where(free, level, 0.0), process.rescale(words, 0.0)

        def score(x: Tensor) -> Tensor:
            xt = process.rescale(x / math.hypot(1, sigma), level)
            denoised = self.model(torch.where(free[..., None], xt, clean), times, batch.attend, condition=condition)
            return (denoised.x0 - x) / sigma**2

        return score
