"""The joint head of a trained denoiser (``models.joint``), by maximum likelihood on noised training texts.

The denoiser is not trained: the head learns p(w_1 .. w_L | x_t) from its predictions at the noise levels of sampling, so that
a few large steps of ancestral sampling draw tokens that fit each other. Shapes: B batch, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusionlm.config import UserError
from diffusionlm.core.objective import Batch, Objective, ObjectiveConfig, expect_family
from diffusionlm.recipe.posterior import pin_logits
from diffusionlm.recipe.schedules import times_at
from diffusionlm.training.distillation.objective import bar_of


@dataclass(frozen=True)
class Joint(ObjectiveConfig, name="joint"):
    """Cross-entropy of each token, given those before it and the denoiser's prediction.

    Args:
        pure_share: share of the texts at pure noise, where sampling starts; the others have a random step's noise level.
        self_conditioning_share: share of the batches that are denoised twice, the second time with the first estimate.
    """

    trains_joint: ClassVar[bool] = True

    pure_share: float = 0.15
    self_conditioning_share: float = 0.8

    def __post_init__(self) -> None:
        self.expect("a share between 0 and 1", "pure_share", "self_conditioning_share")

    def check(self, model: Any) -> None:
        expect_family(self, model, "diffusion")
        if not model.joint_width:
            raise UserError("objective: 'joint' trains a joint head, whose width is model.joint_width; got none")

    def build(self, model: Any) -> JointObjective:
        self.check(model.settings)
        return JointObjective(self, model)


class JointObjective(Objective):
    """The module of ``Joint``: ``joint``, in nats per token, is no likelihood of the text alone."""

    bar: Tensor

    def __init__(self, spec: Joint, model: Any) -> None:
        super().__init__(model, model.config.special_ids["pad"], model.padded_width)
        self.spec = spec
        model.requires_grad_(False)
        model.joint.requires_grad_(True)
        self.register_buffer("bar", bar_of(model), persistent=False)

    def train(self, mode: bool = True) -> Self:
        """Leave the model in evaluation mode: the head is trained on the predictions that sampling will have."""
        super().train(mode)
        self.model.train(False)
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        model = self.model
        with torch.no_grad():
            x0, free = model.encode(batch.ids), model.free_positions(batch)
            logits = pin_logits(self._predicted(x0, free, batch) + self.bar, ~free, batch.ids)
        free = free & batch.mask & (self.bar[batch.ids] == 0)  # [UNK], in training texts, is never drawn
        with torch.autocast(x0.device.type, enabled=False):
            joint = model.joint.logits(logits, x0, model.word_vectors(), batch.mask)
            losses = F.cross_entropy(joint.flatten(0, 1), batch.ids.flatten(), reduction="none").view(free.shape)
        return {"joint": (losses * free).sum() / free.sum().clamp(min=1)}

    def _predicted(self, x0: Tensor, free: Tensor, batch: Batch) -> Tensor:
        """Return the denoiser's logits (B, L, V) for texts at the noise levels of sampling."""
        model, process, (count, device) = self.model, self.model.process, (len(x0), x0.device)
        share = torch.rand(count, 1, device=device)
        share = torch.where(torch.rand(count, 1, device=device) < self.spec.pure_share, 1.0, share)
        t = torch.where(free, times_at(process.schedule, share), 0.0)
        xt = torch.where(free[..., None], process.noise(x0, t), process.rescale(x0, 0.0)).to(x0)
        condition, _ = self.conditioning(batch)
        estimate = None
        if model.self_conditions and torch.rand(()) < self.spec.self_conditioning_share:
            first = model.token_logits(xt, t, batch.attend, None, None, condition) + self.bar
            estimate = torch.where(free[..., None], first.softmax(-1) @ model.word_vectors(), x0)
        logits: Tensor = model.token_logits(xt, t, batch.attend, estimate, None, condition)
        return logits
