"""An objective with a teacher, a copy of the model moved by an exponential moving average, trains, resumes and saves."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from test_trainer import assert_same, weights
from tiny_runs import tiny_config
from torch import Tensor
from torch.nn import functional as F

from diffusionlm.config import to_plain
from diffusionlm.core.objective import Batch, Objective, ObjectiveConfig
from diffusionlm.recipe.cross_entropy import CrossEntropy
from diffusionlm.recipe.frozen import Frozen
from diffusionlm.training.run import train


@dataclass(frozen=True)
class SelfDistillation(ObjectiveConfig):
    """The cross-entropy, and the distance to the teacher's predictions."""

    decay: float = 0.5

    def check(self, model: Any) -> None:
        CrossEntropy().check(model)

    def build(self, model: Any) -> Objective:
        return Distillation(CrossEntropy().build(model), self.decay)


class Distillation(Objective):
    def __init__(self, inner: Objective, decay: float) -> None:
        super().__init__(inner.model, inner.pad_id, inner.width)
        self.inner, self.decay = inner, decay
        self.teacher = Frozen.copy_of(inner.model)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        xt, t = torch.randn(*batch.ids.shape, self.model.settings.dimension), torch.full((len(batch.ids),), 0.5)
        with torch.no_grad():
            target = self.teacher.on(batch.ids.device).token_logits(xt, t, batch.mask)
        learned = self.model.token_logits(xt, t, batch.mask)
        return {**self.inner(batch), "distillation": F.mse_loss(learned, target)}

    def after_step(self) -> None:
        pairs = zip(self.teacher.module.parameters(), self.model.parameters(), strict=True)
        with torch.no_grad():
            for slow, fast in pairs:
                slow.lerp_(fast, 1 - self.decay)

    def finish(self) -> None:
        self.inner.finish()

    def figures(self, held_out: Sequence[list[int]] = ()) -> dict[str, Any]:
        return self.inner.figures(held_out)


def test_a_moving_teacher_survives_an_interruption(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, objective=to_plain(SelfDistillation()))
    assert train(config, tmp_path / "run", write_samples=False, quiet=True)
    final = weights(tmp_path / "run")
    assert not any("teacher" in name for name in final)
    shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "model")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "checkpoint-8")
    assert train(config, tmp_path / "resumed", write_samples=False, quiet=True)
    assert_same(weights(tmp_path / "resumed"), final)
