"""Consistency distillation and training (Song et al. 2023), on a grid of few segments (Heek et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusionlm.core.objective import Batch
from diffusionlm.training.distillation.objective import Distillation, DistillationObjective, Step


@dataclass(frozen=True)
class Consistency(Distillation, name="consistency"):
    """The student's step from t leads where its step from a teacher's step below t leads: the end of t's segment.

    There is a segment for each of the ``evaluations``; the teacher's run has ``teacher_steps``. ``from_data`` replaces the
    teacher's step by one toward the training text (consistency training): its posterior is the text itself.
    """

    teacher_steps: int = 64
    from_data: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect("1 to 10000", "teacher_steps")

    def build(self, model: Any) -> ConsistencyObjective:
        self.check(model.settings)
        return ConsistencyObjective(self, model)


class ConsistencyObjective(DistillationObjective):
    """The module of ``Consistency``."""

    spec: Consistency
    second = "student"

    def steps(self, count: int, device: torch.device) -> Step:
        segments, per_segment = self.spec.evaluations, max(1, round(self.spec.teacher_steps / self.spec.evaluations))
        segment = torch.randint(segments, (count, 1), device=device)
        number = torch.randint(1, per_segment + 1, (count, 1), device=device)
        start = segment / segments
        return Step(start + number / per_segment / segments, start + (number - 1) / per_segment / segments, start)

    def _part(
        self, who: str, xt: Tensor, t: Tensor, s: Tensor, previous: Tensor | None, batch: Batch, condition: Any
    ) -> Tensor:
        if who == "teacher" and self.spec.from_data:
            return F.one_hot(batch.ids, self.model.config.vocabulary).to(xt)
        return super()._part(who, xt, t, s, previous, batch, condition)
