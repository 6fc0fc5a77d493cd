"""Tokens drawn jointly: the distribution of the draws, what one evaluation of a trained head gives, and runs of it."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny_config
from tiny_sources import trained

from diffusionlm.cli import main
from diffusionlm.config import UserError, build, to_plain
from diffusionlm.constraints.dfa import DFA
from diffusionlm.constraints.inference import Lookahead
from diffusionlm.controls import Binding, CompiledControl, Control
from diffusionlm.models.diffusion import DiffusionLM, ModelConfig
from diffusionlm.models.joint import JointHead
from diffusionlm.pipelines.cost import metered
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.joint import draw_tokens, quantile
from diffusionlm.training.distillation.config import distillation_config
from diffusionlm.training.run import RunConfig, train

TWINS = ["red red red red", "blue blue blue blue"]


def run_on(folder: Path, texts: list[str], steps: int = 8) -> str:
    """Return the folder of a run, trained for a moment on ``texts``."""
    (folder / "texts.txt").write_text("\n".join(texts))
    train(tiny_config(folder, training={"steps": steps}), folder / "run", write_samples=False, quiet=True)
    return str(folder / "run")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    train(tiny_config(folder), folder / "run", write_samples=False, quiet=True)
    return str(folder / "run")


@pytest.fixture(scope="module")
def student(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("student") / "run")
    assert main(["distill", teacher, "--out", out, "--evaluations", "2", "--training.steps", "4"]) == 0
    return out


def test_draws_follow_the_joint_distribution() -> None:
    torch.manual_seed(0)
    head, E, logits = JointHead(3, 4, 8), torch.randn(3, 4), torch.randn(1, 2, 3)
    count, texts = 20_000, torch.tensor(list(itertools.product(range(3), repeat=2)))
    with torch.no_grad():
        head.out.weight.mul_(4)
        tokens = draw_tokens(
            head, E, logits.expand(count, -1, -1), torch.ones(count, 2, dtype=torch.bool), 1.0, torch.randn(count, 2)
        )
        given = head.logits(logits.expand(9, -1, -1), E[texts], E, torch.ones(9, 2, dtype=torch.bool)).log_softmax(-1)
    expected = given.gather(-1, texts[..., None]).sum((1, 2)).exp()
    seen = Counter(map(tuple, tokens.tolist()))
    found = torch.tensor([seen[first, second] / count for first, second in texts.tolist()])
    assert expected.sum() == pytest.approx(1, abs=1e-5)
    assert (found - expected).abs().max() < 4 * (0.25 / count) ** 0.5
    independent = logits[0].softmax(-1)
    assert (expected - (independent[0][:, None] * independent[1]).flatten()).abs().max() > 0.05  # the head has an effect


def test_no_draw_is_a_word_of_probability_zero() -> None:
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).expand(4, -1)
    assert quantile(probabilities, torch.tensor([0.0, 0.2, 0.3, 1.0])).tolist() == [1, 1, 3, 3]


def test_one_evaluation_draws_tokens_that_fit_each_other(tmp_path: Path) -> None:
    teacher = run_on(tmp_path, TWINS * 20, steps=20)
    changes = [
        ("training.steps", "60"),
        ("training.warmup", "5"),
        ("training.ema", "0"),
        ("training.optimizer.learning_rate", "0.02"),
    ]
    train(distillation_config(teacher, "joint", 1, (), changes), tmp_path / "student", write_samples=False, quiet=True)
    shares = []
    for folder in (teacher, str(tmp_path / "student")):
        pipe = Pipeline.from_pretrained(folder)
        texts = [row.text for row in pipe(100, evaluations=1, temperature=1.0, batch_size=100)]
        shares.append(sum(text in TWINS for text in texts) / 100)
    assert shares[1] > 0.95 and len(set(texts)) == 2
    assert shares[0] < 0.6  # without the head, words of the two texts are mixed, or one text is drawn from all noises


def test_the_denoiser_stays_its_teacher(teacher: str, student: str) -> None:
    old, new = (DiffusionLM.load(Path(folder) / "model") for folder in (teacher, student))
    assert new.joint is not None and new.joint.out.weight.abs().max() > 0
    weights = new.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in old.state_dict().items())


def test_dropout_of_the_denoiser_is_off_while_its_head_is_trained(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"model": {"backbone": {"dropout": 0.5}}, "training": {"steps": 1}}
    train(tiny_config(tmp_path, **changes), tmp_path / "run", write_samples=False, quiet=True)
    config = distillation_config(str(tmp_path / "run"), "joint", 1)
    objective = config.objective.build(config.model.load(tmp_path / "run" / "model")).train()
    batch, losses = objective.collate([[2, 5, 6, 7, 3]]), []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(objective(batch)["joint"].item())
    assert losses[0] == losses[1] and not any(module.training for module in objective.model.modules())


def test_unknown_words_are_not_in_the_loss(teacher: str) -> None:
    config = distillation_config(teacher, "joint", 1)
    objective = config.objective.build(config.model.load(Path(teacher) / "model"))
    losses = []
    for ids in ([2, 5, 6, 3], [2, 5, 1, 6, 3], [2, 1, 3]):
        torch.manual_seed(0)
        losses.append(objective(objective.collate([ids]))["joint"].item())
    assert max(losses) < 100 and losses[2] == 0


def test_a_head_starts_without_a_correction(teacher: str) -> None:
    model: Any = DiffusionLM.load(Path(teacher) / "model")
    model = model.with_parts(build(ModelConfig, to_plain(model.settings) | {"joint_width": 8}))
    logits, x0 = torch.randn(1, 5, model.config.vocabulary), torch.randn(1, 5, 8)
    assert torch.equal(model.joint.logits(logits, x0, model.word_vectors(), torch.ones(1, 5, dtype=torch.bool)), logits)


def test_samples_depend_on_their_seed_alone(student: str) -> None:
    pipe = Pipeline.from_pretrained(student)
    assert (pipe.sampling.steps, pipe.sampling.sweeps, pipe.sampling.passes) == (2, 0, 1)
    texts = [row.text for row in pipe(5, evaluations=2, seed=3)]
    assert texts == [row.text for row in pipe(5, evaluations=2, seed=3, batch_size=2)]
    assert texts != [row.text for row in pipe(5, evaluations=2, seed=4)]


@pytest.mark.parametrize(("evaluations", "network", "split"), [(4, "leave-one-out", (3, 1)), (8, "transformer", (8, 0))])
def test_the_saved_settings_cost_the_evaluations_asked_for(
    tmp_path: Path, evaluations: int, network: str, split: tuple[int, int]
) -> None:
    config = tiny_config(tmp_path, model={"backbone": {"name": network}}, sampling={"clamp": True})
    (tmp_path / "config.yaml").write_text(json.dumps(to_plain(config)))
    (tmp_path / "sampling.json").write_text(json.dumps({"format_version": 2, **to_plain(config.sampling)}))
    sampling = distillation_config(str(tmp_path), "joint", evaluations).sampling
    assert (sampling.steps, sampling.sweeps, sampling.clamp) == (*split, False)


def test_a_student_costs_the_evaluations_that_it_was_asked_for(student: str) -> None:
    pipe = Pipeline.from_pretrained(student)
    with metered(pipe) as meter:
        list(pipe(3))
    assert meter.evaluations == 6


def test_constraints_hold_in_bf16(student: str) -> None:
    pipe = Pipeline.from_pretrained(student, dtype="bf16")
    rows: Any = pipe(4, "Length(7) & Words('cheap') & ~Words('the')", evaluations=2)
    assert all(row.controls[0].passed for row in rows)


def test_conditions_go_along(tmp_path: Path) -> None:
    out = str(tmp_path / "joint")
    assert main(["distill", str(trained(tmp_path, "several")), "--out", out, "--training.steps", "1"]) == 0
    pipe = Pipeline.from_pretrained(out)
    given: dict[str, Any] = {"source": "1 2 3", "condition": {"kind": "high"}}
    rows: Any = list(pipe(4, "Words('bee')", cfg=2.0, self_cfg=1.5, evaluations=6, **given))
    assert all("bee" in row.text.split() and row.controls[0].passed for row in rows)
    assert [row.text for row in rows] == [
        row.text for row in pipe(4, "Words('bee')", cfg=2.0, self_cfg=1.5, evaluations=6, batch_size=1, **given)
    ]


def test_weights_of_another_width_are_refused(student: str, tmp_path: Path) -> None:
    for number, width in enumerate((None, 4)):
        folder = tmp_path / str(number)
        shutil.copytree(Path(student) / "model", folder)
        plain = json.loads((folder / "config.json").read_text())
        plain["settings"]["joint_width"] = width
        (folder / "config.json").write_text(json.dumps(plain))
        with pytest.raises(UserError, match="joint|weights"):
            DiffusionLM.load(folder)


def test_a_student_of_a_teacher_with_an_adapter_is_a_complete_model(teacher: str, tmp_path: Path) -> None:
    plain = to_plain(distillation_config(teacher, "joint", 2)) | {"adapter": {"name": "lora"}}
    (tmp_path / "config.yaml").write_text(json.dumps(plain))
    assert distillation_config(teacher, "joint", 2, [tmp_path / "config.yaml"]).adapter.complete


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1.0, 1e30, 1e300])
def test_draws_are_accepted_at_any_temperature(temperature: float) -> None:
    torch.manual_seed(0)
    head, E, count = JointHead(4, 4, 8), torch.randn(4, 4), 50
    only_two = DFA(
        classes=torch.tensor([0, 0, 1, 0]),
        step=torch.tensor([[2, 1], [2, 1], [2, 2]]),
        accepting=torch.tensor([True, True, False]),
    )
    logits, mask, lengths = torch.randn(count, 3, 4), torch.ones(count, 3, dtype=torch.bool), torch.full((count,), 2)
    with torch.no_grad():
        ahead = Lookahead(only_two, logits[:, 1:], lengths)
        tokens = draw_tokens(head, E, logits, mask, temperature, torch.randn(count, 3), ahead)
    assert (tokens[:, 1:] == 2).all()


def test_predictions_that_are_no_numbers_are_reported() -> None:
    with pytest.raises(UserError, match="joint head: no token can be drawn, since a prediction is not finite"):
        quantile(torch.tensor([[math.nan, 0.5]]), torch.tensor([0.5]))


@pytest.mark.parametrize(("nats", "expected"), [((math.inf, 0.0), {1}), ((math.inf, math.inf), {0, 1}), ((math.nan, 1.0), {1})])
def test_energies_that_are_not_finite_are_avoided(student: str, nats: tuple[float, float], expected: set[int]) -> None:
    pipe, rows = Pipeline.from_pretrained(student), 50
    values = torch.tensor(nats)
    steering = replace(
        pipe.steering([], pipe.sampling),
        compiled=CompiledControl(energies=(lambda state: values[state.logits[:, 1].argmax(-1)],)),
    )
    draws = [torch.tensor([[2, word, 3]]).expand(rows, -1) for word in (0, 1)]
    chosen = steering.chosen(
        draws, torch.ones(rows, 3, dtype=torch.bool), pipe.model.word_vectors(), lambda: torch.randn(rows, 3)
    )
    assert {*chosen[:, 1].tolist()} == expected


def test_the_steps_of_a_joint_head_can_be_shifted(student: str) -> None:
    pipe = Pipeline.from_pretrained(student)
    choices: list[dict[str, Any]] = [{}, {"noise_shift": 0.0}, {"noise_shift": 2.0}]
    plain, none, shifted = ([row.text for row in pipe(3, steps=3, sweeps=0, **changes)] for changes in choices)
    assert plain == none != shifted


def test_constraints_hold_in_one_evaluation(student: str, capsys: pytest.CaptureFixture[str]) -> None:
    controls = ["Length(7) & Words('cheap') & ~Words('the')", "Infill('The {} is near {2}.')"]
    for control in controls:
        assert main(["generate", student, "-n", "8", "--evaluations", "1", "--control", control]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["controls"][0]["passed"] for row in rows] == [True] * 8


def test_an_interrupted_head_is_resumed(teacher: str, tmp_path: Path) -> None:
    config = distillation_config(teacher, "joint", 2, (), [("training.steps", "4")])
    for name in ("whole", "part"):
        train(config, tmp_path / name, write_samples=False, quiet=True)
    part = tmp_path / "part"
    (part / "model" / "finished").unlink()
    for path in (part / "checkpoints" / "checkpoint-4").rglob("*"):
        path.unlink()
    (part / "checkpoints" / "checkpoint-4").rmdir()
    train(config, part, write_samples=False, quiet=True)
    weights = [DiffusionLM.load(folder / "model").state_dict() for folder in (tmp_path / "whole", part)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_classifiers_come_along(teacher: str, tmp_path: Path) -> None:
    home = Path(teacher) / "model" / "classifiers"
    for place in (home / "one", home / "two" / "model"):
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
    (home / "two" / "log.jsonl").write_text("")
    out = tmp_path / "out"
    assert main(["distill", teacher, "--out", str(out), "--training.steps", "1"]) == 0
    copied = out / "model" / "classifiers"
    assert sorted(str(path.relative_to(copied)) for path in copied.rglob("*.json*")) == ["one/config.json", "two/config.json"]


def test_a_head_may_be_saved_alone_beside_its_teacher(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, head = tmp_path / "base", tmp_path / "head"
    shutil.copytree(teacher, base)
    (base / "model" / "classifiers" / "own").mkdir(parents=True)
    command = ["distill", str(base), "--out", str(head), "--adapter.name", "joint-head", "--training.steps", "4"]
    assert main(command) == 0
    assert sorted(path.name for path in (head / "model").glob("*.safetensors")) == ["joint_head.safetensors"]
    weights = load_file(head / "model" / "joint_head.safetensors")
    assert weights["joint.out.weight"].abs().max() > 0
    pipe = Pipeline.from_pretrained(head)
    texts = [row.text for row in pipe(3, seed=5)]
    assert pipe.binding.has_classifier("own")  # of the base

    whole = DiffusionLM.load(base / "model")
    whole = whole.with_parts(replace(whole.settings, joint_width=192))
    assert whole.load_state_dict(weights, strict=False).unexpected_keys == []
    assert [row.text for row in Pipeline(whole.train(False), pipe.tokenizer, pipe.sampling)(3, seed=5)] == texts

    shutil.move(base / "model", tmp_path / "moved")
    plain = json.loads((head / "model" / "adapter.json").read_text()) | {"base": "../../moved"}
    (head / "model" / "adapter.json").write_text(json.dumps(plain))
    assert [row.text for row in Pipeline.from_pretrained(head)(3, seed=5)] == texts
    capsys.readouterr()
    assert main(["train", "--init-from", str(head), "--out", str(tmp_path / "more")]) == 2
    assert "holds a 'joint-head' of" in capsys.readouterr().err


def test_refusals(teacher: str, student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, config = str(tmp_path / "out"), str(Path(student) / "config.yaml")
    sentences = {
        ("distill", student, "--out", out): "this model is distilled itself; give the one that it was made from",
        (
            "distill",
            teacher,
            "--out",
            out,
            "--model.joint_width",
            "null",
        ): "trains a joint head, whose width is model.joint_width",
        ("distill", teacher, "--out", out, "--model.prediction", "x0"): "joint_width: a joint prediction of the tokens needs",
        (
            "distill",
            teacher,
            "--out",
            out,
            "--model.distilled_for",
            "2",
        ): "joint_width: a joint head draws tokens, and the steps",
        ("distill", teacher, "--out", out, "--adapter.name", "lora"): "adapter: 'lora' would not save the joint head",
        ("distill", teacher, "--out", out, "--sampling.clamp", "yes"): "sampling.clamp: a joint head draws the tokens",
        ("distill", teacher, "--out", out, "--sampling.sampler", "heun"): "sampler: 'heun' follows the probability flow",
        (
            "train",
            "--config",
            config,
            "--init-from",
            student,
            "--model.joint_width",
            "4",
            "--out",
            out,
        ): "model: expected the settings",
        (
            "train",
            "--init-from",
            teacher,
            "--adapter",
            "joint-head",
            "--out",
            out,
        ): "adapter: 'joint-head' is trained by diffusionlm",
        (
            "distill",
            teacher,
            "--out",
            out,
            "--adapter.name",
            "joint-head",
            "--adapter.width",
            "0",
        ): "width: expected 1 to 10000",
        ("generate", student, "--sampler", "flow"): "sampler: 'flow' follows the probability flow",
        ("generate", student, "--sampler", "dpm++2m"): "sampler: 'dpm++2m' follows the probability flow",
        ("train", "--init-from", student, "--out", out): "objective: 'cross-entropy' would leave the joint head behind",
        ("generate", student, "--step-temperature", ".5"): "step_temperature: this model draws the tokens of each step",
        ("generate", student, "--clamp"): "clamp: this model draws the tokens of each step",
    }
    for command, sentence in sentences.items():
        assert main(list(command)) == 2, command
        assert sentence in capsys.readouterr().err
    assert not Path(out).exists()
    with pytest.raises(UserError, match="init_from: expected a trained model"):
        build(RunConfig, {"objective": "joint", "model": {"joint_width": 4}}).check()


@pytest.mark.parametrize(("nats", "expected"), [(50.0, 1.0), (math.log(3), 0.75), (0.0, 0.5)])
def test_a_draw_is_chosen_in_proportion_to_exp_of_minus_its_energy(student: str, nats: float, expected: float) -> None:
    torch.manual_seed(0)
    pipe, rows = Pipeline.from_pretrained(student), 4000
    steering = replace(
        pipe.steering([], pipe.sampling),
        compiled=CompiledControl(energies=(lambda state: nats * state.logits[:, 1].argmax(-1),)),
    )
    draws = [torch.tensor([[2, word, 3]]).expand(rows, -1) for word in (0, 1)]
    mask = torch.ones(rows, 3, dtype=torch.bool)
    chosen = steering.chosen(draws, mask, pipe.model.word_vectors(), lambda: torch.randn(rows, 3))
    assert float((chosen[:, 1] == 0).float().mean()) == pytest.approx(expected, abs=0.03)


def test_energies_choose_among_the_draws_of_one_evaluation(student: str) -> None:
    pipe = Pipeline.from_pretrained(student)
    low = pipe.model.config.vocabulary // 8

    @dataclass(frozen=True)
    class Low(Control, name="low-for-joint"):
        def compile(self, binding: Binding) -> CompiledControl:
            return CompiledControl(energies=(lambda state: -20 * state.logits.softmax(-1)[..., :low].sum((1, 2)),))

        def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
            return [1.0] * len(texts)

    counts = []
    for draws in (1, 16):
        guidance = {"draws": draws, "logit_scale": 0.0, "draft": 0.0}
        with metered(pipe) as meter:
            rows = pipe(16, Low(), steps=1, sweeps=0, length=8, guidance=guidance)
        counts.append(sum(token < low for row in rows for token in pipe.tokenizer(row.text)["input_ids"]))
        assert meter.evaluations == 16
    assert counts[1] > counts[0] + 16  # one token more in each text


def test_a_run_is_read_where_nothing_else_is_imported(student: str) -> None:
    command = "from diffusionlm.training.run import read_config; print(read_config(['config.yaml']).objective.pure_share)"
    done = subprocess.run([sys.executable, "-c", command], cwd=student, capture_output=True, text=True, check=True)
    assert done.stdout == "0.15\n"
