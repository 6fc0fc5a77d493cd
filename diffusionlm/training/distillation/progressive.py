"""Progressive distillation (Salimans and Ho 2022, algorithm 2): one step of the student is two of its teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.core.objective import Batch, Objective
from diffusionlm.recipe.frozen import Frozen
from diffusionlm.training.distillation.objective import Distillation, DistillationObjective, Step


def check_rounds(spec: Any) -> None:
    """Raise UserError where ``teacher_steps`` cannot be halved to ``evaluations``, or ``round_steps`` is no number of steps."""
    spec.expect("1 to 100000", "round_steps")
    if spec.teacher_steps not in {spec.evaluations * 2**n for n in range(1, 15)}:
        raise UserError(
            f"teacher_steps: expected {spec.evaluations} times 2, 4, 8, ..., since each round halves them, "
            f"got {spec.teacher_steps}"
        )


def halved(teacher_steps: int, evaluations: int) -> list[int]:
    """Return the student's steps in each round."""
    found = [teacher_steps // 2]
    while found[-1] > evaluations:
        found.append(found[-1] // 2)
    return found


class InRounds(Objective):
    """Part of an objective with rounds, of which all but the first have a copy of the ``student`` as the teacher.

    ``updates`` counts those of the weights, of which each of the ``rounds`` of ``spec`` has ``round_steps``.
    """

    spec: Any
    updates: Tensor
    student: Frozen[Any]

    def begin(self) -> None:
        """Start the first round; the model is there."""
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.student = Frozen.copy_of(self.model)

    @property
    def round(self) -> int:
        """The number of the round, from 0."""
        return min(int(self.updates) // self.spec.round_steps, len(self.spec.rounds) - 1)

    def after_step(self) -> None:
        """Make a copy of the student the teacher at the end of a round."""
        before = self.round
        self.updates += 1
        if self.round != before:
            self.student.module.load_state_dict(self.model.state_dict())


@dataclass(frozen=True)
class Progressive(Distillation, name="progressive"):
    """Halve the number of steps in rounds, from ``teacher_steps`` to ``evaluations``: a power of two times these.

    After each round but the last, of ``round_steps`` updates, a copy of the student is the teacher.
    """

    teacher_steps: int = 64
    round_steps: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rounds(self)

    @property
    def rounds(self) -> list[int]:
        """The student's steps in each round."""
        return halved(self.teacher_steps, self.evaluations)

    def build(self, model: Any) -> ProgressiveObjective:
        self.check(model.settings)
        return ProgressiveObjective(self, model)


class ProgressiveObjective(InRounds, DistillationObjective):
    """The module of ``Progressive``."""

    spec: Progressive

    def __init__(self, spec: Progressive, model: Any) -> None:
        super().__init__(spec, model)
        self.begin()

    def steps(self, count: int, device: torch.device) -> Step:
        size = self.spec.rounds[self.round]
        number = torch.randint(1, size + 1, (count, 1), device=device)
        return Step(number / size, (number - 0.5) / size, (number - 1) / size)

    def _part(
        self, who: str, xt: Tensor, t: Tensor, s: Tensor, previous: Tensor | None, batch: Batch, condition: Any
    ) -> Tensor:
        if not self.round:
            return super()._part(who, xt, t, s, previous, batch, condition)
        return self._posterior(self.student.on(xt.device), xt, t, s, previous, batch, condition)
