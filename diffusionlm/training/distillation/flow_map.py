"""Flow maps: a student for steps of any size, of which a step is two steps (Boffi et al. 2025; Discrete Flow Maps 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from diffusionlm.training.distillation.objective import Distillation, DistillationObjective, Step


@dataclass(frozen=True)
class FlowMap(Distillation, name="flow-map"):
    """Steps between any two times; half of them those of ``evaluations`` equal steps.

    ``form`` is who takes the two parts, see the module's table; ``teacher_steps`` is the size of the teacher's.
    """

    form: Literal["semigroup", "lagrangian", "eulerian"] = "semigroup"
    teacher_steps: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect("1 to 10000", "teacher_steps")

    def build(self, model: Any) -> FlowMapObjective:
        self.check(model.settings)
        return FlowMapObjective(self, model)


class FlowMapObjective(DistillationObjective):
    """The module of ``FlowMap``."""

    spec: FlowMap

    def __init__(self, spec: FlowMap, model: Any) -> None:
        super().__init__(spec, model)
        self.first = "teacher" if spec.form == "eulerian" else "student"
        self.second = "teacher" if spec.form == "lagrangian" else "student"

    def steps(self, count: int, device: torch.device) -> Step:
        segments, size = self.spec.evaluations, 1 / self.spec.teacher_steps
        ends = torch.rand(count, 2, device=device).sort(-1, descending=True).values
        whole = torch.randint(1, segments + 1, (count, 1), device=device) / segments
        grid = torch.rand(count, 1, device=device) < 0.5
        t = torch.where(grid, whole, ends[:, :1])
        s = torch.where(grid, whole - 1 / segments, ends[:, 1:]).clamp(min=0)
        if self.spec.form == "semigroup":
            return Step(t, torch.lerp(s, t, torch.rand(count, 1, device=device)), s)
        step = torch.minimum(t - s, torch.full_like(t, size))
        return Step(t, s + step if self.spec.form == "lagrangian" else t - step, s)
