"""Seam: an objective. Distil a teacher's self-conditioning passes into a student that needs one (Hinton et al. 2015).

A self-conditioned denoiser is evaluated ``passes`` times at each step, each time with its last estimate of x_0 as a further
input (Chen et al. 2023, Analog Bits). The student learns to give the last pass's token posterior at once:

    x0_1 = teacher(x_t, 0)    p = softmax teacher(x_t, x0_1)    loss = KL(p || softmax student(x_t, 0))    mean over tokens

An objective is two classes: a frozen dataclass with the hyperparameters, and a module that returns the terms of the loss.
``Frozen`` holds the teacher outside of the module's weights: it is not trained, averaged, or saved in checkpoints. Training by
the library's ``train`` gives batches, optimizer, averaged weights, logs and resume: run the same command again after a stop.

    python examples/distillation.py [TEACHER [STEPS [OUT]]]
    PYTHONPATH=examples python -m diffusionlm train --config TEACHER/config.yaml --init-from TEACHER \\
        --objective.name distillation:Distill --objective.teacher TEACHER --sampling.passes 1 --out STUDENT
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor

from diffusionlm import DiffusionLM, Pipeline, RunConfig, train
from diffusionlm.config import UserError, build, merge, to_plain
from diffusionlm.core.objective import Batch, Objective, ObjectiveConfig, expect_family
from diffusionlm.models.io import model_folder
from diffusionlm.recipe.frozen import Frozen


@dataclass(frozen=True)
class Distill(ObjectiveConfig):
    """The KL divergence from the posterior of ``teacher`` (a run or a model's folder) after ``passes`` passes."""

    teacher: str
    passes: int = 2

    def check(self, model: Any) -> None:
        """Check that the student is a self-conditioned diffusion model with logits."""
        expect_family(self, model, "diffusion")
        if not (model.has_logits and model.self_conditioning):
            raise UserError("objective: distillation needs a model with prediction 'logits' and self_conditioning")

    def build(self, model: Any) -> Objective:
        """Load the teacher."""
        self.check(model.settings)
        return DistillObjective(self, model)


class DistillObjective(Objective):
    """The module of ``Distill``."""

    def __init__(self, spec: Distill, model: Any) -> None:
        """Hold the student and the frozen teacher."""
        super().__init__(model, model.config.special_ids["pad"], model.padded_width)
        self.spec, self.teacher = spec, Frozen(DiffusionLM.load(model_folder(spec.teacher)))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``distillation``, in nats per token."""
        special, process = self.model.config.special_ids, self.model.process
        free = batch.mask & (batch.ids != special["start"]) & (batch.ids != special["end"])
        x0 = self.model.encode(batch.ids)
        t = process.schedule.training_times(torch.rand(len(x0), 1, device=x0.device)).expand(batch.ids.shape)
        xt, t = torch.where(free[..., None], process.noise(x0, t), process.rescale(x0, 0.0)), torch.where(free, t, 0)
        target = self.target(xt, t, batch)
        student = self.model.token_logits(xt, t, batch.attend).log_softmax(-1)
        divergence = (target.exp() * (target - student)).sum(-1)
        return {"distillation": (divergence * free).sum() / free.sum()}

    @torch.no_grad()
    def target(self, xt: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """Return the teacher's log-probabilities (B, L, V)."""
        teacher, estimate = self.teacher.on(xt.device), None
        for _ in range(self.spec.passes):
            denoised = teacher(xt, t, batch.attend, estimate)
            estimate = denoised.x0
        log_p: Tensor = denoised.logits.log_softmax(-1)
        return log_p


def divergence(model: DiffusionLM, teacher: str, pipe: Pipeline, texts: list[str]) -> float:
    """Return the KL divergence of ``model``, in one pass, from the teacher on ``texts``; the same noise at each call."""
    objective = Distill(teacher).build(model)
    torch.manual_seed(0)
    with torch.no_grad():
        return float(objective(objective.collate([pipe.tokenizer(text)["input_ids"] for text in texts]))["distillation"])


def main(teacher: str = tiny.BUNDLED, steps: str = "200", out: str | None = None) -> None:
    """Train a student and compare it with its teacher, both in one pass."""
    pipe = tiny.model(teacher)
    texts = tiny.config().data.corpus.load()["validation"]["text"][:100]
    before = divergence(pipe.model, teacher, pipe, texts)
    changes = {
        "model": to_plain(pipe.model.settings),
        "init_from": teacher,
        "objective": {"name": "distillation:Distill", "teacher": teacher},
        "training": {"steps": int(steps), "save_every": max(1, int(steps) // 2), "ema": 0.98},
        "sampling": {**to_plain(pipe.sampling), "passes": 1},
    }
    folder = Path(tempfile.mkdtemp()) / "student" if out is None else Path(out)
    train(build(RunConfig, merge(tiny.CONFIG, changes)), folder, write_samples=False, quiet=True)
    student = Pipeline.from_pretrained(folder)
    after = divergence(student.model, teacher, pipe, texts)
    print(
        f"KL from the teacher's two passes, nats per token: teacher in one pass {before:.4f}, student in one pass {after:.4f}"
    )
    shown = (("teacher, two passes", pipe, 2), ("teacher, one pass", pipe, 1), ("student, one pass", student, 1))
    for name, one, passes in shown:
        print(f"\n{name}")
        for row in one(3, passes=passes):
            print(f"  {row.text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
