"""Options without effect: refused where the user gave them, for every option and every kind of model."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffusionlm.cli import main
from diffusionlm.config import Component, UserError
from diffusionlm.controls import Reward
from diffusionlm.data.corpora import Files
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.evaluation.benchmark import EvaluationConfig, evaluate
from diffusionlm.evaluation.control.evaluation import evaluate_control
from diffusionlm.evaluation.effect import check_evaluation
from diffusionlm.evaluation.scoring import ScoringConfig, score
from diffusionlm.models.backbones import Transformer
from diffusionlm.models.causal import CausalConfig
from diffusionlm.models.conditions import Condition, Conditioning
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.models.masked import MaskedConfig
from diffusionlm.models.seq2seq import Seq2SeqConfig
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.gradient import Gradient
from diffusionlm.pipelines.masked import Ancestral
from diffusionlm.pipelines.placing import placed
from diffusionlm.training.run import save_model
from diffusionlm.verbs.showing import FAMILIES

GOLDEN = Path(__file__).parent.parent / "golden" / "format-1"
SMALL = Transformer(layers=1, width=16, heads=2)


@dataclass(frozen=True)
class Digit(Condition, name="digit-for-test"):
    size = 1

    def build(self, model: Any) -> nn.Module:
        return _Digit()

    def values(self, rows: Any) -> list[int]:
        return [0] * len(rows)

    def collate(self, values: Sequence[str | None]) -> dict[str, Tensor]:
        return {"digit": torch.tensor([[0.0 if value is None else 10.0 / float(value)] for value in values])}


class _Digit(nn.Module):
    def forward(self, digit: Tensor) -> Conditioning:
        return Conditioning(features=digit)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder for each kind of model, untrained, whose saved settings have the least work."""
    home = tmp_path_factory.mktemp("models")
    tokenizer = WordTokenizer().make(["a b c d e f g h i j"])
    least: dict[str, Any] = {"steps": 2, "passes": 1, "sweeps": 0}
    made: dict[str, Any] = {
        "diffusion": (ModelConfig(dimension=16, backbone=SMALL), SamplingConfig(**least)),
        "condition": (ModelConfig(dimension=16, backbone=SMALL, condition=Digit()), SamplingConfig(**least)),
        "masked": (MaskedConfig(backbone=SMALL), SamplingConfig(steps=2, sampler=Ancestral())),
        "causal": (CausalConfig(layers=1, width=16, heads=2), SamplingConfig()),
        "seq2seq": (Seq2SeqConfig(layers=1, width=16, heads=2), SamplingConfig()),
    }
    for name, (config, sampling) in made.items():
        model = config.make(tokenizer, [[2, 4, 5, 6, 3]], 12)
        model.config.length_counts = [0, 0, 0, 3, 1]
        save_model(model, tokenizer, sampling, home / name / "model")
    (home / "texts.txt").write_text("a b c\nd e\n")
    return {"texts": str(home / "texts.txt"), **{name: str(home / name) for name in made}, "guided": str(GOLDEN)}


UNGUIDED = "diffusion masked causal seq2seq"
EVERYWHERE = "diffusion exact gradient reward masked causal"
TABLE = {  # an option with a value, and where it has no effect
    "--steps 3": "causal seq2seq",
    "--evaluations 3": "causal seq2seq",
    "--passes 2": "masked causal seq2seq",
    "--sampler ancestral": "causal seq2seq",
    "--step-temperature 0.5": "masked causal seq2seq",
    "--sweeps 1": "masked causal seq2seq",
    "--sampling.sweep_odds 4": "diffusion exact reward masked causal seq2seq",  # the guided model's settings have sweeps
    "--clamp": "masked causal seq2seq",
    "--sampling.noise_shift 2": "masked causal seq2seq",
    "--sampling.noise_shift 2 --steps 1": f"{UNGUIDED} exact gradient reward",
    "--length 6": "causal seq2seq",
    "--sampling.length_temperature 0.5": "causal seq2seq",
    "--sampling.length_temperature 0.5 --length 4": f"{UNGUIDED} exact gradient reward",
    "--candidates 2": UNGUIDED,
    "--candidates 3": "",
    "--ranking likelihood": f"{UNGUIDED} exact gradient reward",
    "--candidates 3 --ranking mbr": "",
    "--candidates 2 --ranking likelihood": "",
    "--candidates 2 --ranking likelihood --ranking.strata 2": "causal seq2seq",
    "--candidates 2 --ranking likelihood --ranking.per_token yes": "",
    "--candidates 2 --ranking likelihood --ranking.per_token no --length 4": "causal seq2seq",
    "--candidates 2 --ranking likelihood --ranking.per_token yes --length 4": f"{UNGUIDED} exact gradient reward",
    "--candidates 2 --ranking function --ranking.function test_effect:shorter": "",
    "--candidates 2 --ranking function --ranking.function test_effect:shorter --ranking.then mbr": (
        f"{UNGUIDED} exact gradient reward"
    ),
    "--candidates 2 --ranking function --ranking.function test_effect:shorter --ranking.then likelihood": "",
    "--temperature 0.9": "",
    "--batch-size 2": "",
    "--seed 3": "",
    "--strength 2": f"{UNGUIDED} exact reward",
    "--guidance.logit_scale 2": f"{UNGUIDED} exact reward",
    "--guidance.name adagrad": f"{UNGUIDED} reward",
    "--guidance.constraint_scale 2": f"{UNGUIDED} reward",
    "--guidance.constraint_every 3": f"{UNGUIDED} gradient reward",
    "--guidance.constraint_every 3 --evaluations 6": f"{UNGUIDED} exact gradient reward",
    "--particles 2": f"{UNGUIDED} exact gradient",
    "--particles.every 2": f"{UNGUIDED} exact gradient",
    "--ensure 2": UNGUIDED,
    "--annotator words": UNGUIDED,
    "--condition 1": EVERYWHERE,
    "--strength 0": "",
    "--particles 1": "",
    "--ensure 1": "",
    "--candidates 1": "",
    "--passes 1": "",
    "--sweeps 0": "",
}
KINDS = {
    "diffusion": ("diffusion", []),
    "exact": ("diffusion", ["--control", "Length(2, 8)"]),
    "gradient": ("guided", ["--control", "food=Japanese"]),
    "reward": ("diffusion", ["--control", 'Reward("test_effect:shorter")']),
    "masked": ("masked", []),
    "causal": ("causal", []),
    "seq2seq": ("seq2seq", []),
}


def shorter(texts: Sequence[str]) -> list[float]:
    return [1 / (1 + len(text)) for text in texts]


@pytest.mark.parametrize("option", TABLE)
@pytest.mark.parametrize("kind", KINDS)
def test_an_option_without_effect_is_refused_and_every_other_one_acts(
    kind: str, option: str, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    model, controls = KINDS[kind]
    words = option.replace("ancestral", "ancestral" if kind in ("masked", "causal", "seq2seq") else "ddim").split()
    quick = ["--guidance.draft", "0", "--steps", "2", "--sweeps", "0"] if kind == "gradient" else []
    quick = [] if option.startswith(("--steps", "--evaluations", "--sweeps", "--sampling.sweep", "--guidance.name")) else quick
    if kind in TABLE[option].split():
        assert main(["generate", models[model], "--count", "1", *controls, *words]) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.count("\n") == 1
        assert any(part in told.err for part in ("leave it out", "give 3 or more", "leave it empty", "takes no controls"))
    else:
        assert main(["generate", models[model], "--count", "1", *controls, *quick, *words]) == 0, capsys.readouterr().err


def test_settings_of_a_saved_model_are_never_refused(models: dict[str, str]) -> None:
    assert open_pipeline(models["causal"]).sampling.sweeps == 6
    assert len(open_pipeline(models["causal"])(2)) == len(open_pipeline(models["masked"])(2)) == 2


def test_what_python_gives_is_checked_as_what_the_command_line_gives(models: dict[str, str]) -> None:
    causal, diffusion = open_pipeline(models["causal"]), open_pipeline(models["diffusion"])
    for pipe, changes in (
        (causal, {"steps": 4}),
        (causal, {"tries": 2}),
        (causal, {"guidance": {"strength": 2}}),
        (diffusion, {"guidance": Gradient()}),
        (diffusion, {"guidance": {"name": "gradient", "draft": 0.1}}),
        (diffusion, {"tries": 2}),
    ):
        with pytest.raises(UserError, match="so this setting has no effect|has no sampling steps"):
            pipe(1, **changes)
    with pytest.raises(UserError, match="tries: expected at least 1"):
        causal(1, tries=0)
    assert diffusion(1, "Length(2)", guidance=Gradient(constraint_scale=2))
    assert diffusion(1, Reward(shorter), particles={"count": 2})


SCORING = {"--strata 4": "causal", "--orders 2": "causal", "--seed 1": "causal", "--strata 128": "causal", "--orders 0": ""}


@pytest.mark.parametrize("option", SCORING)
@pytest.mark.parametrize("kind", ["diffusion", "masked", "causal"])
def test_score_refuses_options_of_the_noise_for_an_exact_likelihood(
    kind: str, option: str, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["score", models[kind], models["texts"], *option.split()])
    told = capsys.readouterr()
    assert status == (2 if kind in SCORING[option] else 0)
    assert status == 0 or ("is exact and draws nothing" in told.err and told.out == "")


def test_scoring_settings_that_another_one_replaces_are_refused(models: dict[str, str]) -> None:
    with pytest.raises(UserError, match="strata: the any-order bound draws orders"):
        score(models["diffusion"], ["a"], ScoringConfig(strata=4, orders=2))
    with pytest.raises(UserError, match="device: a pipeline has its own"):
        score(open_pipeline(models["diffusion"]), ["a"], ScoringConfig(device="cuda"))


@pytest.mark.parametrize(
    ("kinds", "settings", "sampling", "refused"),
    [
        (["causal"], {"steps": (4,)}, [], "steps"),
        (["causal"], {"orders": 4}, [], "orders"),
        (["causal"], {}, [("sampler", "ddim")], "sampling.sampler"),
        (["diffusion"], {"bound_texts": 0, "strata": 4}, [], "strata"),
        (["diffusion"], {}, [("guidance.strength", "2")], "sampling.guidance.strength"),
        (["diffusion"], {}, [("temperature", "2")], "sampling.temperature"),
        ([], {"strata": 4}, [], "strata"),
        ([], {}, [("clamp", "true")], "clamp"),
    ],
)
def test_an_evaluation_refuses_a_setting_without_effect_for_every_model(
    kinds: list[str], settings: dict[str, Any], sampling: list[tuple[str, str]], refused: str, models: dict[str, str]
) -> None:
    folders, config = [models[kind] for kind in kinds], EvaluationConfig(count=2, **settings)
    with pytest.raises(UserError, match=f"^{refused}: "):
        evaluate(models["causal"], folders, [models["texts"]], config, corpus=_corpus(models), sampling=sampling, quiet=True)


def _corpus(models: dict[str, str]) -> Files:
    return Files(models["texts"])


def test_steps_given_to_several_models_pass_if_one_has_steps(models: dict[str, str]) -> None:
    pipelines = {kind: open_pipeline(models[kind]) for kind in ("causal", "diffusion")}
    check_evaluation(EvaluationConfig(steps=(3,), strata=4), None, [("passes", "2")], "fp32", pipelines)


def test_changes_of_an_evaluation_are_judged_together(models: dict[str, str]) -> None:
    pipelines = {"diffusion": open_pipeline(models["diffusion"])}
    for changes in ({"sweeps": "1", "sweep_odds": "4"}, {"candidates": "2", "ranking": "likelihood", "ranking.strata": "4"}):
        check_evaluation(EvaluationConfig(), None, [*changes.items()], "fp32", pipelines)
    for changes in ({"candidates": "2"}, {"ranking": "likelihood"}):
        with pytest.raises(UserError, match=f"^sampling.{next(iter(changes))}: .* so this setting has no effect"):
            check_evaluation(EvaluationConfig(), None, [*changes.items()], "fp32", pipelines)


def test_quickstart_and_show_refuse_options_that_another_one_replaces(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "--steps", "5", "--minutes", "1", "--out", "nowhere"]) == 2
    assert "--minutes: --steps replaces it" in capsys.readouterr().err
    assert main(["show", "samplers", "--training.steps", "5"]) == 2
    assert "leave out --config and --NAME VALUE" in capsys.readouterr().err


def test_show_lists_every_family_of_components(capsys: pytest.CaptureFixture[str]) -> None:
    for path in FAMILIES.values():
        importlib.import_module(path.partition(":")[0])
    families = {kind.family for kind in Component.__subclasses__() if kind.__module__.startswith("diffusionlm.")}
    listed = {getattr(importlib.import_module(p.partition(":")[0]), p.partition(":")[2]).family for p in FAMILIES.values()}
    assert listed == families
    for name in FAMILIES:
        assert main(["show", name]) == 0
        assert capsys.readouterr().out.strip()


# Conditions


def test_a_model_with_a_condition_is_neither_scored_nor_evaluated_without_it(models: dict[str, str]) -> None:
    with pytest.raises(UserError, match="condition: this model was trained with one"):
        score(models["condition"], ["a b"])
    with pytest.raises(UserError, match="expected a model without a condition"):
        evaluate_control(models["causal"], [models["condition"]], [])
    config = EvaluationConfig(count=2, split="train")
    with pytest.raises(
        UserError, match=r"^condition: conditions of 2 texts of train: .* cannot use the rows: ZeroDivisionError"
    ):
        evaluate(models["causal"], [models["condition"]], corpus=Files(models["texts"], validation_share=0), config=config)


def test_a_value_that_a_condition_does_not_take_is_refused_and_a_missing_one_is_said(
    models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ("0", "x"):
        assert main(["generate", models["condition"], "--condition", value]) == 2
        told = capsys.readouterr()
        assert told.err.startswith("diffusionlm: condition: ") and told.err.count("\n") == 1 and not told.out
    assert main(["generate", models["condition"], "--count", "1"]) == 0
    assert "without a condition" in capsys.readouterr().err
    assert main(["generate", models["condition"], "--count", "1", "--condition", "2"]) == 0
    assert "condition" not in capsys.readouterr().err


# Devices


class _NoFloat64(TorchDispatchMode):
    """Devices other than the CPU raise for float64, as mps does."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        found = function(*arguments, **(named or {}))
        if isinstance(found, Tensor) and found.dtype == torch.float64 and found.device.type != "cpu":
            raise TypeError("the framework does not support float64")
        return found


def test_a_device_without_float64_is_refused_before_any_work() -> None:
    with _NoFloat64(), pytest.raises(UserError, match="^device: 'meta' has no float64, in which noise levels are computed"):  # type: ignore[no-untyped-call]
        placed(open_pipeline(GOLDEN).model, "meta", "fp32")
    assert placed(open_pipeline(GOLDEN).model, "cpu", "fp32") == torch.float32
