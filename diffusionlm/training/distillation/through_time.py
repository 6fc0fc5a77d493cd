"""Self-distillation through time (Deschenaux and Gulcehre 2024, arXiv:2410.21035): masked models for few steps.

A teacher that unmasks in two steps sees, in the second, what it drew in the first. The student learns to predict both at once:
each hidden word gets the teacher's distribution at the step that would reveal it,

    target = p(w | x_t) for words revealed between t and u, p(w | x_u) for later ones        loss = KL(target || student(x_t))

where x_u has the words that the teacher drew. Steps are halved in rounds, as in progressive distillation. It is a peer: a step
of a masked model is a product of the words' distributions, whatever it is trained for. Shapes: B batch, L positions, V words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.core.objective import Batch, ObjectiveConfig, expect_family
from diffusionlm.models.io import model_folder
from diffusionlm.models.masked import MaskedLM, word_positions
from diffusionlm.pipelines.masked import draw_words
from diffusionlm.recipe.frozen import Frozen
from diffusionlm.training.distillation.progressive import InRounds, check_rounds, halved


@dataclass(frozen=True)
class ThroughTime(ObjectiveConfig, name="sdtt"):
    """Halve the number of a masked model's steps in rounds, from ``teacher_steps`` to ``evaluations``.

    Args:
        teacher: the folder of the teacher, a masked model or its run.
        evaluations: per sample, that the student is made for.
        temperature: of the teacher's draws.
        teacher_steps: a power of two times ``evaluations``.
        round_steps: updates of each round; after each but the last, a copy of the student is the teacher.
    """

    teacher: str = ""
    evaluations: int = 4
    temperature: float = 1.0
    teacher_steps: int = 64
    round_steps: int = 500

    def __post_init__(self) -> None:
        self.expect("1 to 10000", "evaluations")
        self.expect("a positive number", "temperature")
        check_rounds(self)

    @property
    def rounds(self) -> list[int]:
        """The student's steps in each round."""
        return halved(self.teacher_steps, self.evaluations)

    def check(self, model: Any) -> None:
        expect_family(self, model, "masked")
        if not self.teacher:
            raise UserError("objective.teacher: expected the folder of the model to distil, got none")

    def build(self, model: MaskedLM) -> ThroughTimeObjective:
        self.check(model.settings)
        return ThroughTimeObjective(self, model)


class ThroughTimeObjective(InRounds):
    """The module of ``ThroughTime``: ``distillation``, in nats per hidden word."""

    spec: ThroughTime
    model: MaskedLM

    def __init__(self, spec: ThroughTime, model: MaskedLM) -> None:
        super().__init__(model, model.config.special_ids["pad"])
        self.spec, self.first = spec, Frozen(MaskedLM.load(model_folder(spec.teacher)))
        self.begin()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        ids, words = batch.ids, word_positions(batch.mask) & batch.free
        steps = self.spec.rounds[self.round]
        number = torch.randint(1, steps + 1, (len(ids), 1), device=ids.device)
        t, u = number / steps, (number - 0.5) / steps
        uniform = torch.rand(ids.shape, device=ids.device)
        hidden, later = words & (uniform < t), words & (uniform < u)
        condition, terms = self.conditioning(batch)
        with torch.no_grad():
            target = self._target(ids, hidden, later, batch)
        logits = self.model(ids, hidden, batch.attend, condition).log_softmax(-1)
        divergence = torch.xlogy(target, target).sum(-1) - (target * logits.clamp(min=-1e4)).sum(-1)
        return {"distillation": divergence.where(hidden, 0).sum() / hidden.sum().clamp(min=1), **terms}

    def _target(self, ids: Tensor, hidden: Tensor, later: Tensor, batch: Batch) -> Tensor:
        """Return the teacher's distributions (B, L, V) of ``hidden`` words; those hidden ``later`` have its second step's."""
        model = (self.first if not self.round else self.student).on(ids.device)
        given = None if batch.condition is None else model.condition_on(batch.condition)
        first = model(ids, hidden, batch.attend, given)
        drawn, _ = draw_words(first, torch.rand(ids.shape, device=ids.device, dtype=torch.float64), self.spec.temperature)
        second = model(torch.where(hidden & ~later, drawn, ids), later, batch.attend, given)
        return torch.where(later[..., None], second, first).softmax(-1)
