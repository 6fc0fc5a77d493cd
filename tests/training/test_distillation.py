"""A student's step is two of its teacher's: the formula, the methods' losses, and runs from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny_config
from torch import Tensor

from diffusionlm.cli import main
from diffusionlm.config import UserError, build, to_plain
from diffusionlm.controls import Binding, CompiledControl, Control
from diffusionlm.core.process import VariancePreserving
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.student import Toward
from diffusionlm.pipelines.cost import metered
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.recipe.samplers import DDIM, renoised
from diffusionlm.recipe.schedules import Cosine
from diffusionlm.training.distillation.config import distillation_config
from diffusionlm.training.distillation.objective import DistillationObjective, Step, two_part_share
from diffusionlm.training.distillation.progressive import Progressive
from diffusionlm.training.run import RunConfig, train

METHODS = {"progressive": {"teacher_steps": 8}, "consistency": {}, "flow-map": {}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run whose model was trained for a moment; its process is without the learned schedule's randomness."""
    folder = tmp_path_factory.mktemp("teacher")
    train(tiny_config(folder), folder / "run", write_samples=False, quiet=True)
    return str(folder / "run")


def objective_of(teacher: str, method: str, **changes: Any) -> DistillationObjective:
    assignments = [(f"objective.{name}", str(value)) for name, value in {**METHODS[method], **changes}.items()]
    config = distillation_config(teacher, method, 2, (), assignments)
    model = config.model.load(Path(teacher) / "model")
    objective: Any = config.objective.build(model)
    return objective


def batch_of(objective: DistillationObjective, teacher: str) -> Any:
    pipe = Pipeline.from_pretrained(teacher)
    texts = ["The Golden Fox is a cheap pub.", "It serves Japanese food near the river."]
    return objective.collate([pipe.tokenizer(text)["input_ids"] for text in texts])


def test_two_steps_without_noise_are_one_step_of_the_mixture() -> None:
    torch.manual_seed(0)
    process, E = VariancePreserving(Cosine()), torch.randn(7, 4)
    first, second = torch.rand(2, 3, 7).softmax(-1), torch.rand(2, 3, 7).softmax(-1)
    xt = torch.randn(2, 3, 4, dtype=torch.float64)
    step = Step(*(torch.full((2, 3), time, dtype=torch.float64) for time in (0.9, 0.55, 0.2)))

    def move(p: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return renoised(process, (p @ E).double(), x, t, s, torch.zeros_like(t)).mean

    twice = move(second, move(first, xt, step.t, step.u), step.u, step.s)
    mixed = torch.lerp(second, first, two_part_share(process, step)[..., None].float())
    torch.testing.assert_close(move(mixed, xt, step.t, step.s), twice, rtol=1e-6, atol=1e-6)


def test_the_last_step_is_its_second_part_and_a_step_nowhere_its_first() -> None:
    process = VariancePreserving(Cosine())
    times = torch.tensor([[0.5, 0.3]], dtype=torch.float64)
    assert two_part_share(process, Step(times, times / 2, torch.zeros_like(times))).max() < 1e-3
    assert two_part_share(process, Step(times, times, times)).tolist() == [[1, 1]]


def test_a_student_starts_as_its_teacher(teacher: str) -> None:
    model = DiffusionLM.load(Path(teacher) / "model")
    student: Any = model.student(4).train(False)
    xt, t = torch.randn(2, 5, model.settings.dimension), torch.tensor([0.8, 0.3], dtype=torch.float64)
    expected = model.train(False)(xt, t).logits
    for condition in (None, Toward(model.process.schedule.gamma(t))):
        torch.testing.assert_close(student(xt, t, condition=condition).logits, expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_student_that_equals_its_teacher_has_no_loss_where_it_only_denoises(teacher: str, method: str) -> None:
    objective = objective_of(teacher, method, passes=1, previous="none", denoising_share=0.999999).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        loss = objective(batch_of(objective, teacher))["distillation"]
    assert abs(float(loss)) < 1e-5


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("progressive", {}),
        ("progressive", {"previous": "perturbed"}),
        ("consistency", {}),
        ("consistency", {"from_data": True}),
        ("flow-map", {}),
        ("flow-map", {"form": "lagrangian"}),
        ("flow-map", {"form": "eulerian", "previous": "none"}),
    ],
)
def test_the_loss_is_a_divergence_whose_gradient_reaches_the_student_alone(
    teacher: str, method: str, changes: dict[str, Any]
) -> None:
    objective = objective_of(teacher, method, **changes)
    torch.manual_seed(0)
    loss = objective(batch_of(objective, teacher))["distillation"]
    assert float(loss.detach()) > 0
    loss.backward()
    moved = {name for name, weight in objective.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert "model.step_input.projection.weight" in moved
    assert "model.embedding.weight" not in moved
    assert not any(weight.requires_grad for weight in objective.teacher.frozen.module.parameters())


def test_a_student_is_sampled_at_the_times_that_it_is_trained_for(teacher: str) -> None:
    objective: Any = objective_of(teacher, "progressive", teacher_steps=4, denoising_share=0.0)
    batch = batch_of(objective, teacher)
    free = objective.model.free_positions(batch) & batch.mask
    drawn: set[tuple[float, float]] = set()
    for _ in range(20):
        before, step, _ = objective._drawn(batch, free)
        drawn |= set(zip(step.t[free].tolist(), step.s[free].tolist(), strict=True))
        assert bool((before[free] >= step.t[free]).all())
    pipe = Pipeline(objective.model, Pipeline.from_pretrained(teacher).tokenizer)
    seen: list[float] = []
    sampling = replace(pipe.sampling, steps=2, passes=1, sweeps=0, length=5)
    list(pipe.stream(1, sampling, lambda state, _: seen.append(state.t)))
    taken = sorted(set(seen), reverse=True)
    assert len(taken) == 2 and drawn == {(taken[0], taken[1]), (taken[1], 0.0)}


def test_the_rounds_halve_the_steps_and_make_the_student_the_next_teacher(teacher: str) -> None:
    objective: Any = objective_of(teacher, "progressive", teacher_steps=16, round_steps=1)
    assert objective.spec.rounds == [8, 4, 2]
    weight = objective.model.step_input.projection.weight
    for size in (8, 4, 2, 2):
        step = objective.steps(100, torch.device("cpu"))
        assert (step.t * size).round().allclose(step.t * size) and float((step.t - step.s).unique()) == pytest.approx(1 / size)
        with torch.no_grad():
            weight.add_(1)
        objective.after_step()
    assert float(objective.student.module.step_input.projection.weight[0, 0]) == 2  # of the last change of the round


def test_a_few_updates_lower_the_loss_on_held_out_texts(teacher: str, tmp_path: Path) -> None:
    changes = [
        ("objective.teacher_steps", "4"),
        ("training.steps", "30"),
        ("training.evaluate_every", "15"),
        ("training.ema", "0"),
        ("training.warmup", "5"),
    ]
    config = distillation_config(teacher, "progressive", 2, (), changes)
    assert train(config, tmp_path / "student", write_samples=False, quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "student" / "log.jsonl").read_text().splitlines()]
    losses = [row["eval_distillation"] for row in rows if "eval_distillation" in row]
    assert losses[-1] < losses[0]


def test_a_student_is_an_ordinary_model(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "student")
    progressive = ["--method", "progressive", "--evaluations", "2", "--objective.teacher_steps", "4"]
    assert main(["distill", teacher, "--out", out, *progressive]) == 0
    assert main(["distill", teacher, "--out", out, *progressive]) == 0
    assert "already trained" in capsys.readouterr().err
    pipe = Pipeline.from_pretrained(out)
    assert (pipe.sampling.steps, pipe.sampling.passes, pipe.model.settings.distilled_for) == (2, 1, 2)
    assert main(["generate", out, "-n", "2", "--control", "Length(6)"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["length"] for row in rows] == [6, 6]
    (tmp_path / "texts.txt").write_text(rows[0]["text"] + "\n")
    assert main(["score", out, str(tmp_path / "texts.txt"), "--strata", "4"]) == 0
    capsys.readouterr()
    assert main(["generate", out, "-n", "1", "--steps", "3"]) == 0
    assert "steps: this model is distilled for 2 steps; it was not trained for 3 steps, so" in capsys.readouterr().err
    assert main(["generate", out, "-n", "1", "--sampling.noise_shift", "2"]) == 2
    assert "noise_shift: a distilled model takes the steps that it was trained for" in capsys.readouterr().err


@dataclass(frozen=True)
class Fox(Control, name="fox-for-distillation"):
    """An energy without effect."""

    def compile(self, binding: Binding) -> CompiledControl:
        return CompiledControl(energies=(lambda state: 0 * state.x0.sum((1, 2)),))

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        return [1.0] * len(texts)


def test_steps_that_a_student_was_not_trained_for_are_said(teacher: str, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = Pipeline.from_pretrained(teacher)
    student: Any = pipe.model.student(5).train(False)
    pipe.model = student
    pipe.sampling = replace(pipe.sampling, steps=5, sampler=DDIM())
    capsys.readouterr()
    text = pipe(1, length=3)[0].text
    [*pipe.edit(text, 1.0), *pipe.edit(text, 0.0)]
    pipe(1, Fox(), length=3, guidance={"draft": 0})
    assert capsys.readouterr().err == ""
    said = "steps: this model is distilled for 5 steps; it was not trained for {}, so its samples may be worse\n"
    [*pipe.edit(text, 0.4, Fox())]  # which has no draft
    assert capsys.readouterr().err == said.format("steps from level 0.4")
    pipe(1, Fox(), length=3)
    after = "a draft of 2 and 3 after it (guidance.draft 0 leaves the draft out)"
    assert capsys.readouterr().err == said.format(after)
    pipe(1, length=3, steps=1)
    assert capsys.readouterr().err == said.format("1 step")


def test_previews_of_a_student_take_its_own_steps(teacher: str, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = Pipeline.from_pretrained(teacher)
    student: Any = pipe.model.student(6).train(False)
    pipe.model = student
    capsys.readouterr()
    with metered(pipe) as meter:
        pipe.preview(2)
    assert meter.evaluations == 12 and capsys.readouterr().err == ""


def test_a_student_has_no_noise_shift(teacher: str) -> None:
    with pytest.raises(UserError, match=r"^sampling\.noise_shift: a student takes the steps that it is trained for, no "):
        distillation_config(teacher, "consistency", 2, (), [("sampling.noise_shift", "2")])


def test_the_number_of_steps_reaches_the_network(teacher: str) -> None:
    pipe = Pipeline.from_pretrained(teacher)
    student: Any = pipe.model.student(2).train(False)
    pipe.model = student
    pipe.sampling = replace(pipe.sampling, steps=1)
    seen: list[list[float]] = []
    student.step_input.register_forward_hook(lambda module, given, out: seen.append(given[2][0].tolist()))
    pipe(1, length=3)
    clean, end = (float(pipe.model.process.schedule.gamma(torch.tensor(time))) for time in (0.0, 0.0))
    assert seen == [[pytest.approx(clean)] + [pytest.approx(end)] * 3 + [pytest.approx(clean)]]


def test_refusals(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(Path(teacher) / "model")
    out = str(tmp_path / "out")
    halving = ("distill", teacher, "--out", out, "--method", "progressive")
    sentences = {
        ("distill", model, "--out", out): "expected a run folder, or a model folder and its run's config.yaml as --config",
        (
            "distill",
            teacher,
            "--out",
            out,
            "--method",
            "regression",
        ): "method: expected one of joint, progressive, consistency, flow-map",
        ("distill", teacher, "--out", out, "--method", "progresive"): "did you mean 'progressive'?",
        ("distill", teacher, "--out", out, "--evaluations", "0"): "--evaluations: expected at least 1, got 0",
        (*halving, "--objective.teacher_steps", "12"): "teacher_steps: expected 4 times 2, 4, 8, ...",
        (
            *halving,
            "--training.steps",
            "6",
            "--objective.round_steps",
            "2",
        ): "training.steps: expected more than 6, got 6: 4 rounds of objective.round_steps 2 go from 64 steps to 4",
        ("distill", teacher, "--out", out, "--method", "sdtt"): (
            "method: 'sdtt' distils masked models, got a diffusion model; take joint or progressive or consistency or flow-map"
        ),
        (*halving, "--model.distilled_for", "3"): "expected model.distilled_for 4",
        (*halving, "--objective.teacher", ""): "objective.teacher: expected the folder",
    }
    for command, sentence in sentences.items():
        assert main(list(command)) == 2
        assert sentence in capsys.readouterr().err
    assert not Path(out).exists()


def test_a_student_is_resumed_in_its_round(teacher: str, tmp_path: Path) -> None:
    changes = [("objective.teacher_steps", "8"), ("objective.round_steps", "2"), ("training.steps", "6")]
    config = distillation_config(teacher, "progressive", 2, (), changes)
    train(config, tmp_path / "whole", write_samples=False, quiet=True)
    part = tmp_path / "part"
    train(config, part, write_samples=False, quiet=True)
    (part / "model" / "finished").unlink()
    for path in (part / "checkpoints").iterdir():
        if not path.name.endswith("-4"):
            for file in sorted(path.rglob("*"), reverse=True):
                file.unlink()
            path.rmdir()
    train(config, part, write_samples=False, quiet=True)
    weights = [DiffusionLM.load(folder / "model").state_dict() for folder in (tmp_path / "whole", part)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_rounds_share_the_steps(teacher: str) -> None:
    config = distillation_config(teacher, "progressive", 4, (), [("training.steps", "11")])
    assert isinstance(config.objective, Progressive)
    assert (config.objective.rounds, config.objective.round_steps) == ([32, 16, 8, 4], 2)


def test_the_config_of_a_student_comes_back(teacher: str) -> None:
    config = distillation_config(teacher, "flow-map", 4, (), [])
    assert build(RunConfig, to_plain(config)) == config
    with pytest.raises(UserError, match="teacher_steps"):
        Progressive(teacher=teacher, evaluations=4, teacher_steps=4)
