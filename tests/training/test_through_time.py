"""Masked models are distilled through time: a student's step predicts what its teacher sees in two."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny_plain
from torch import Tensor

from diffusionlm.cli import main
from diffusionlm.config import build
from diffusionlm.pipelines.masked import MaskedPipeline
from diffusionlm.training.distillation.config import distillation_config
from diffusionlm.training.distillation.through_time import ThroughTimeObjective
from diffusionlm.training.run import RunConfig, train


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("masked")
    plain = {**tiny_plain(folder, training={"steps": 4}, objective="masked"), "sampling": {"sampler": "maskgit"}}
    plain["model"] = {"name": "masked", "backbone": {"name": "transformer", "layers": 1, "width": 16, "heads": 2}}
    with redirect_stderr(io.StringIO()):
        train(build(RunConfig, plain), folder / "run", write_samples=False, quiet=True)
    return str(folder / "run")


def objective_of(teacher: str, **changes: Any) -> ThroughTimeObjective:
    config = distillation_config(teacher, "sdtt", 2, (), [(f"objective.{name}", str(value)) for name, value in changes.items()])
    objective: Any = config.objective.build(config.model.load(Path(teacher) / "model"))
    return objective


def batch_of(objective: ThroughTimeObjective, teacher: str) -> Any:
    tokenizer = MaskedPipeline.from_pretrained(teacher).tokenizer
    texts = ["The Golden Fox is a cheap pub.", "It serves Japanese food near the river."]
    return objective.collate([tokenizer(text)["input_ids"] for text in texts])


def test_the_target_is_the_teachers_at_the_step_that_reveals_a_word(teacher: str) -> None:
    objective = objective_of(teacher, temperature=1e-6)
    batch, model = batch_of(objective, teacher), objective.first.module
    hidden = torch.zeros_like(batch.mask)
    hidden[:, 1:5] = True
    later = hidden.clone()
    later[:, 1:3] = False
    target = objective._target(batch.ids, hidden, later, batch)

    def posterior(ids: Tensor, hidden: Tensor) -> Tensor:
        return model(ids, hidden, batch.attend).softmax(-1)

    first = posterior(batch.ids, hidden)
    revealed = torch.where(hidden & ~later, first.argmax(-1), batch.ids)
    torch.testing.assert_close(target[:, 1:3], first[:, 1:3])
    torch.testing.assert_close(target[:, 3:5], posterior(revealed, later)[:, 3:5])
    torch.testing.assert_close(target.sum(-1), torch.ones(target.shape[:2]))


def test_a_student_that_equals_its_teacher_has_the_loss_of_what_the_second_step_sees(teacher: str) -> None:
    objective = objective_of(teacher, teacher_steps=4).eval()
    batch = batch_of(objective, teacher)
    torch.manual_seed(0)
    losses = torch.stack([objective(batch)["distillation"].detach() for _ in range(20)])
    assert (
        bool((losses >= -1e-6).all()) and float(losses.mean()) < 0.1
    )  # after a moment of training words depend little on others
    objective.zero_grad()
    objective(batch)["distillation"].backward()
    assert any(weight.grad is not None and bool(weight.grad.any()) for weight in objective.model.parameters())
    assert not any(weight.requires_grad for weight in objective.first.module.parameters())


def test_the_student_is_the_next_rounds_teacher(teacher: str) -> None:
    objective = objective_of(teacher, teacher_steps=8, round_steps=1)
    assert objective.spec.rounds == [4, 2] and objective.round == 0
    with torch.no_grad():
        objective.model.mask_vector.add_(1)
    objective.after_step()
    assert objective.round == 1 and torch.equal(objective.student.module.mask_vector, objective.model.mask_vector)
    objective.after_step()
    assert objective.round == 1


def test_a_run_from_the_command_line(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "student")
    assert (
        main(["distill", teacher, "--out", out, "--method", "sdtt", "--evaluations", "2", "--objective.teacher_steps", "4"])
        == 0
    )
    pipe = MaskedPipeline.from_pretrained(out)
    assert pipe.sampling.steps == 2 and len(pipe(3)) == 3
    capsys.readouterr()
    for command, sentence in (
        (["--method", "progressive"], "method: 'progressive' distils diffusion models, got a masked model; take sdtt"),
        (["--method", "sdtt", "--objective.teacher_steps", "6"], "teacher_steps: expected 4 times 2, 4, 8, ..."),
    ):
        assert main(["distill", teacher, "--out", str(tmp_path / "none"), *command]) == 2
        assert sentence in capsys.readouterr().err and not (tmp_path / "none").exists()
