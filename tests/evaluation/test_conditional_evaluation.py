"""``evaluate --judge`` of models with a condition: samples and likelihoods given the conditions of the reference texts."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_conditions import trained
from tiny_runs import TINY

from diffusionlm.config import UserError, build, merge
from diffusionlm.data.corpora import Files, to_dataset
from diffusionlm.evaluation.benchmark import EvaluationConfig, evaluate
from diffusionlm.evaluation.report import Report, table
from diffusionlm.evaluation.scoring import ScoringConfig, score
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import BasePipeline
from diffusionlm.pipelines.conditioning import Requested
from diffusionlm.pipelines.cost import metered
from diffusionlm.training.run import RunConfig, train

COUNT = 6
CONFIG = EvaluationConfig(temperatures=(0.7, 1.0), count=COUNT, split="train", bound_texts=3, strata=4, orders=2)
MODELS = ("source", "label", "several", "masked", "causal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        trained(folder, name)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    tagged = [{"text": row["text"], "tags": [word[0] for word in row["text"].split()]} for row in rows]
    to_dataset(tagged).to_json(folder / "tagged.jsonl")
    for name in ("tags", "masked-tags"):
        plain: dict[str, Any] = merge(TINY, {"data": {"corpus": str(folder / "tagged.jsonl"), "max_length": 8}})
        plain = merge(plain, {"training": {"steps": 2}, "model": {"condition": {"name": "tags"}}})
        if name == "masked-tags":
            plain["model"]["name"], plain["objective"] = "masked", "masked"
            plain["sampling"] = {"steps": 4, "passes": 1, "sampler": "ancestral", "sweeps": 0}
        train(build(RunConfig, plain), folder / name, write_samples=False, quiet=True)
    return folder


def corpus(folder: Path, name: str = "pairs") -> Files:
    return Files(str(folder / f"{name}.jsonl"), validation_share=0)


def evaluated(folder: Path, model: str, out: Path, name: str = "pairs", **changes: Any) -> Report:
    config = replace(CONFIG, **changes)
    return evaluate(folder / "causal", [folder / model], config=config, corpus=corpus(folder, name), out=out, quiet=True)


def samples(out: Path, system: str) -> list[str]:
    (path,) = (out / "texts").glob(f"{system}.jsonl")
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def reference_rows(folder: Path, count: int, name: str = "pairs") -> list[dict[str, Any]]:
    """Return the corpus rows of the reference texts, which the seed chooses."""
    rows = corpus(folder, name).load()["train"].to_list()
    return random.Random(0).sample(rows, count)


REQUESTS: dict[str, Any] = {
    "source": lambda row: {"source": row["source"]},
    "masked": lambda row: {"source": row["source"]},
    "label": lambda row: {"condition": row["kind"]},
    "several": lambda row: {"condition": {"kind": row["kind"]}, "source": row["source"]},
}


def one_each(pipe: BasePipeline[Any], requests: list[dict[str, Any]], temperature: float) -> list[str]:
    """Return sample ``i`` of the request ``i`` of a user."""
    sampling = replace(pipe.sampling, temperature=temperature)
    return [[*pipe.stream(i + 1, sampling, **each)][i].text for i, each in enumerate(requests)]


@pytest.mark.parametrize("model", REQUESTS)
def test_sample_i_is_given_the_condition_of_reference_text_i_at_every_temperature(
    model: str, folder: Path, tmp_path: Path
) -> None:
    report = evaluated(folder, model, tmp_path / "out", bound_texts=0, orders=8, strata=128)
    rows, pipe = reference_rows(folder, COUNT), open_pipeline(folder / model)
    assert samples(tmp_path / "out", "reference-text") == [row["text"] for row in rows]
    for temperature in (0.7, 1.0):
        expected = one_each(pipe, [REQUESTS[model](row) for row in rows], temperature)
        assert samples(tmp_path / "out", f"{model}-4-steps-temperature-{temperature}") == expected
    keys = {"label": "kind", "several": "kind and source"}.get(model, "source")
    said = table(report)
    assert f"{model}: samples are conditional on the {keys} of the reference texts (train), each used once" in said
    assert "The judge LM has no condition." in said


@pytest.mark.parametrize("model", ["source", "label", "masked"])
def test_the_likelihood_is_of_each_text_given_its_own_condition(model: str, folder: Path, tmp_path: Path) -> None:
    report = evaluated(folder, model, tmp_path / "out", temperatures=(1.0,), count=2)
    rows, pipe = reference_rows(folder, 3), open_pipeline(folder / model)
    values = pipe.model.settings.condition.encoded(
        [row["kind" if model == "label" else "source"] for row in rows], pipe.tokenizer
    )
    texts = [row["text"] for row in rows]
    assert [one.orders for one in report.likelihoods] == [0, 2]
    for one in report.likelihoods:
        options = ScoringConfig(strata=4, orders=one.orders)
        found = [each for _, each in score(pipe, texts, options, given=(), condition=[Requested(value) for value in values])]
        assert one.texts == 3 and one.nats_per_token == pytest.approx(sum(each.nats for each in found) / one.tokens)
        if model == "source":  # of another condition it is another figure
            others = [Requested(values[0])] * 3
            assert sum(each.nats for _, each in score(pipe, texts, options, given=(), condition=others)) != sum(
                each.nats for each in found
            )


@pytest.mark.parametrize("model", ["tags", "masked-tags"])
def test_conditions_that_fix_lengths_give_each_sample_its_own(model: str, folder: Path, tmp_path: Path) -> None:
    evaluated(folder, model, tmp_path / "out", "tagged", temperatures=(1.0,), bound_texts=0, orders=8, strata=128)
    wanted = [len(row["text"].split()) for row in reference_rows(folder, COUNT, "tagged")]
    found = [len(text.split()) for text in samples(tmp_path / "out", f"{model}-4-steps-temperature-1.0")]
    assert found == wanted and len({*wanted}) > 1


def test_an_evaluation_of_a_conditional_model_resumes(folder: Path, tmp_path: Path) -> None:
    first = evaluated(folder, "source", tmp_path / "out", count=2, temperatures=(1.0,))
    again = evaluated(folder, "source", tmp_path / "out", count=2, temperatures=(1.0, 0.5))
    assert again.likelihoods == first.likelihoods and set(map(repr, first.rows)) <= set(map(repr, again.rows))
    assert len(again.rows) == len(first.rows) + 2  # of the model and of the judge


def test_an_evaluation_is_guided(folder: Path) -> None:
    config = replace(CONFIG, temperatures=(1.0,), count=2, bound_texts=0, orders=8, strata=128)
    models = [folder / "source"]
    report = evaluate(folder / "causal", models, config=config, corpus=corpus(folder), sampling=[("cfg", "3")], quiet=True)
    row = report.rows[-1]
    assert row.system == "source (cfg 3)" and row.settings["sampling"]["cfg"] == 3
    pipe = open_pipeline(folder / "source")
    with metered(pipe) as meter:
        pipe(2, source=reference_rows(folder, 1)[0]["source"], cfg=3.0)
    assert row.cost is not None and row.cost.evaluations == meter.cost(2, 1).evaluations == 2 * 4 * pipe.sampling.passes
    assert [each.cost for each in report.rows if each.kind != "model"] == [None] * (len(report.rows) - 1)


@pytest.mark.parametrize("model", ["source", "label"])
def test_a_corpus_without_the_condition_is_refused_before_anything_is_written(model: str, folder: Path, tmp_path: Path) -> None:
    name = {"source": "source", "label": "kind"}[model]
    with pytest.raises(UserError, match=rf"^{model}: conditions of 6 texts of train: .*: the corpus has no column '{name}'"):
        evaluated(folder, model, tmp_path / "out", "tagged")
    assert not (tmp_path / "out").exists()


def test_conditions_for_another_number_of_texts_are_refused(folder: Path) -> None:
    pipe = open_pipeline(folder / "label")
    with pytest.raises(UserError, match=r"^condition: expected one for all or for each of 3 texts, got 2"):
        score(pipe, ["ant", "bee", "cat"], condition=[Requested("low"), Requested("high")])
