"""Rankings of candidates that cannot be: refused in one sentence, before any sampling where that is possible."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import tiny_config

from diffusionlm.cli import main
from diffusionlm.config import UserError, build, merge, to_plain
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.evaluation.slots import realised
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.ranking import Candidates, FunctionRanking, Ranking
from diffusionlm.training.run import RunConfig, train

GOLDEN = Path(__file__).parent.parent / "golden" / "format-1"
QUICK = ["--steps", "2", "--sweeps", "0", "--candidates", "3", "--count", "1"]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    found = open_pipeline(GOLDEN)
    assert isinstance(found, Pipeline)
    return found


def of_sources(texts: Sequence[str], sources: Sequence[str]) -> list[float]:
    return [0.0 for _ in texts]


def endless(texts: Sequence[str]) -> list[float]:
    return [math.inf for _ in texts]


REFUSED = {  # arguments -> the sentence
    "--ranking likelyhood": "sampling.ranking: no ranking is called 'likelyhood'; did you mean 'likelihood'?",
    "--ranking function": "sampling.ranking.function: this setting is needed and has no default",
    "--ranking.strata 8": "sampling.ranking.strata: there is no such setting",
    "--ranking likelihood --ranking.strata 1": "sampling.ranking.strata: expected 2 to 100000, got 1",
    "--ranking likelihood --ranking.stratum 9": "sampling.ranking.stratum: there is no such setting; did you mean 'strata'?",
    "--ranking math:fsum": "sampling.ranking: 'math:fsum' is no ranking: expected a subclass of diffusionlm.pipelines.ranking",
    "--ranking function --ranking.function math:fsun": "sampling.ranking.function: cannot import 'math:fsun', expected module:f",
    "--ranking function --ranking.function shorter": "sampling.ranking.function: cannot import 'shorter', expected module:",
    "--ranking function --ranking.function math:pi": "sampling.ranking.function: 'math:pi' cannot be called; expected a function",
    "--ranking function --ranking.function math:sqrt": "ranking: the function fails for 3 texts: TypeError: must be real number",
    "--ranking function --ranking.function builtins:len": "ranking: expected a finite score for each of 3 texts, got 3",
    "--ranking function --ranking.function test_rankings:endless": "ranking: expected a finite score for each of 3 texts, got [i",
    "--ranking function --ranking.function test_rankings:of_sources": "ranking: the function needs the source of each text, but",
    "--ranking function --ranking.function math:fsum --ranking.then mbrr": "sampling.ranking.then: no ranking is called 'mbrr'",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_ranking_that_cannot_be_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(GOLDEN), *QUICK, *words.split()]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(f"diffusionlm: {REFUSED[words]}") and told.err.count("\n") == 1


def test_a_module_that_fails_when_it_is_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_ranking.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"^function: cannot import 'broken_ranking:f', expected module:function: division by"):
        FunctionRanking("broken_ranking:f")


@dataclass(frozen=True)
class Nothing(Ranking):
    def utilities(self, candidates: Candidates, numbers: Sequence[int]) -> list[float]:
        return [math.nan for _ in numbers]


def test_what_python_gives_is_refused_as_well(pipe: Pipeline) -> None:
    def unequal(texts: Sequence[str]) -> list[float]:
        return [0.0]

    calls: dict[Callable[[], Any], str] = {
        lambda: pipe(1, ranking="likelihood"): "ranking: there is one candidate, so this setting has no effect",
        lambda: pipe(1, candidates=2, ranking="mbr"): "candidates: of two candidates minimum-Bayes-risk selection prefers none",
        lambda: pipe(
            1, candidates=2, steps=2, ranking=Nothing()
        ): "ranking: expected a number as the utility of each text, got",
        lambda: pipe(
            1, candidates=2, steps=2, ranking=FunctionRanking(unequal)
        ): "ranking: expected a finite score for each of",
        lambda: pipe(1, candidates=2, ranking=FunctionRanking(of_sources)): "ranking: the function needs the source of each",
        lambda: FunctionRanking(5): "function: 5 cannot be called; expected a function of texts",  # type: ignore[arg-type]
        lambda: pipe(1, candidates=2, ranking={"name": "function", "function": 5}): "ranking.function",
    }
    for call, sentence in calls.items():
        with pytest.raises(UserError) as caught:
            call()
        assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


def test_sources_that_are_no_meaning_representations_are_named() -> None:
    with pytest.raises(UserError, match=r"^source: expected 'key\[value\], key\[value\]', got 'ant bee'$"):
        realised(["a"], ["ant bee"])


def test_a_model_without_a_bound_is_refused_before_sampling() -> None:
    tokenizer = WordTokenizer().make(["a b c"])
    backbone = {"name": "transformer", "layers": 1, "width": 16, "heads": 2}
    settings = {"prediction": "x0", "schedule": "gumbel", "dimension": 8, "backbone": backbone, "self_conditioning": False}
    model = build(ModelConfig, settings).make(tokenizer, [[2, 4, 5, 3]], 12)
    pipe = Pipeline(model.train(False), tokenizer, SamplingConfig(steps=2, passes=1, sweeps=0))
    with pytest.raises(
        UserError, match=r"^ranking: a model that predicts x0, with the gumbel schedule, has no likelihood bound"
    ):
        pipe(1, candidates=2, ranking="likelihood")


# A model folder must not decide which function is called


@pytest.mark.parametrize("function", ["os:system", "subprocess:call", "nowhere:at_all"])
def test_a_saved_model_names_no_function(function: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "model")
    path = tmp_path / "model" / "sampling.json"
    saved = json.loads(path.read_text())
    for ranking in (
        {"name": "function", "function": function},
        {"name": "function", "function": "math:fsum", "then": {"name": "function", "function": function}},
    ):
        path.write_text(json.dumps({**saved, "candidates": 3, "ranking": ranking}))
        with pytest.raises(
            UserError, match=r"sampling\.json\.ranking\.(then\.)?function: a saved model names no function to call; give"
        ):
            open_pipeline(tmp_path / "model")


def test_a_run_whose_model_could_not_be_opened_is_refused_before_it_begins(tmp_path: Path) -> None:
    for function in ("math:fsum", lambda texts: [0.0] * len(texts)):
        sampling = {"candidates": 3, "ranking": {"name": "function", "function": function}}
        config = build(RunConfig, merge(to_plain(tiny_config(tmp_path)), {"sampling": sampling}))
        with pytest.raises(UserError, match=r"^sampling\.ranking\.function: a saved model names no function to call"):
            train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
