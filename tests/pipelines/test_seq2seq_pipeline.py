"""Encoder-decoders as the peer of conditional diffusion: the same corpus, trainer, requests and reports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_conditioning import SOURCES, corpus, reversals
from tiny_adapters import LORA

from diffusionlm.cli import main
from diffusionlm.config import UserError, build, merge
from diffusionlm.evaluation.reference_report import evaluate_references
from diffusionlm.evaluation.scoring import ScoringConfig, score
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.seq2seq import Seq2SeqPipeline
from diffusionlm.training.run import RunConfig, train

GOLDEN = Path(__file__).parent.parent / "golden" / "format-1"


def config(folder: Path, **changes: Any) -> RunConfig:
    """Return the config of a tiny encoder-decoder of the corpus in ``folder``."""
    condition = {"name": "source", "max_length": 6, "layers": 1, "dropout": 0.0}
    plain: dict[str, Any] = {
        "data": {"corpus": str(folder / "pairs.jsonl"), "max_length": 8},
        "model": {"name": "seq2seq", "layers": 1, "width": 32, "heads": 4, "dropout": 0.0, "condition": condition},
        "objective": "seq2seq",
        "training": {"steps": 300, "batch_tokens": 512, "warmup": 20, "threads": 1, "precision": "fp32"},
    }
    return build(RunConfig, merge(plain, changes))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seq2seq")
    corpus(folder)
    assert train(config(folder), folder / "run", quiet=True)
    return folder


@pytest.fixture(scope="module")
def trained(home: Path) -> Seq2SeqPipeline:
    pipe = open_pipeline(home / "run")
    assert isinstance(pipe, Seq2SeqPipeline)
    return pipe


def test_samples_are_made_from_their_source(trained: Seq2SeqPipeline) -> None:
    rows = trained(8, source=SOURCES, temperature=0.5)
    assert [row.source for row in rows] == [source for source in SOURCES for _ in range(8)]
    assert [row.index for row in rows] == list(range(32))
    assert reversals(rows) > 0.9
    wrong = [replace(row, source=SOURCES[(row.index // 8 + 1) % 4]) for row in rows]
    assert reversals(wrong) == 0


def test_a_sample_depends_on_its_own_seed_and_source_alone(trained: Seq2SeqPipeline) -> None:
    rows = trained(3, source=SOURCES, temperature=3.0)
    assert len({row.text for row in rows}) > 8
    assert trained(3, source=SOURCES, temperature=3.0, batch_size=2) == rows
    assert trained(3, source=SOURCES[0], temperature=3.0) == rows[:3]
    assert trained(source=SOURCES[0], temperature=3.0) == rows[:1]
    assert trained(3, source=SOURCES, temperature=3.0, seed=1) != rows
    assert [row.text for row in trained(3, condition=SOURCES[0], temperature=3.0)] == [row.text for row in rows[:3]]


def test_near_temperature_0_samples_are_greedy(trained: Seq2SeqPipeline) -> None:
    """The same as ``generate`` of transformers."""
    model, tokenizer = trained.model, trained.tokenizer
    rows = trained(2, source=SOURCES, temperature=1e-6)
    assert rows == trained(2, source=SOURCES, temperature=1e-310)
    assert [row.text for row in rows[::2]] == [row.text for row in rows[1::2]]
    for row in rows[::2]:
        asked = torch.tensor([[2, *tokenizer(row.source, add_special_tokens=False)["input_ids"]]])
        ids = model.generate(asked, attention_mask=torch.ones_like(asked), do_sample=False, max_length=7)
        assert str(tokenizer.decode(ids[0], skip_special_tokens=True)).strip() == row.text


def test_candidates_are_chosen_by_minimum_bayes_risk(trained: Seq2SeqPipeline) -> None:
    hot: dict[str, Any] = {"source": SOURCES, "temperature": 2.5}
    assert reversals(trained(12, candidates=8, **hot)) > reversals(trained(12, **hot)) + 0.1


def test_guidance_moves_from_the_null_condition(trained: Seq2SeqPipeline) -> None:
    none = trained(12, temperature=1.0)
    assert [row.text for row in trained(12, source=SOURCES[0], cfg=0.0)] == [row.text for row in none]
    hot: dict[str, Any] = {"source": SOURCES, "temperature": 2.5}
    assert reversals(trained(12, cfg=2.0, **hot)) > reversals(trained(12, **hot)) + 0.1


def test_samples_in_training_are_without_a_source(home: Path) -> None:
    assert len((home / "run/samples/step-300.txt").read_text().splitlines()) == 10


def test_requests_that_do_not_fit_the_model(trained: Seq2SeqPipeline) -> None:
    calls: dict[Callable[[], Any], str] = {
        lambda: trained(1, "Length(3)", source="ant"): "control: a t5 model takes no controls",
        lambda: trained(1, source="ant", steps=4): "steps: an autoregressive model samples one token after the other",
        lambda: trained(1, source="ant", length=4): "length: an autoregressive model samples EOS",
        lambda: trained(1, source="ant", self_cfg=2.0): "self_cfg: an autoregressive model has no noisy vectors",
        lambda: trained(1, source="ant", candidates=2): "candidates: of two candidates",
        lambda: trained(1, cfg=2.0): "cfg: there is no condition to guide to; leave it at 1",
        lambda: trained(1, source="ant " * 9): "source: expected at most 6 tokens (model.condition.max_length), got 9",
        lambda: trained(1, source=" "): "source: expected a text, got ' '",
        lambda: trained(1, condition={"kind": "x"}): "condition: this model has no condition called 'kind'",
        lambda: list(trained.stream(1, SamplingConfig(length=3), source="ant")): "length: an autoregressive model samples EOS",
        lambda: list(score(trained, ["ant"])): "condition: this model was trained with one, source: expected its value",
        lambda: list(score(trained, ["ant"], source=["ant"] * 2)): "source: expected one for each of 1 texts, got 2",
        lambda: list(score(trained, ["ant"], source="ant")): "texts: expected a list of texts",
        lambda: list(score(trained, ["ant"], source=[" "])): "source: expected a text, got ' '",
        lambda: list(score(trained, ["ant " * 7], source=["ant"])): "text 0: 7 tokens, more than this model's maximum of 6",
        lambda: list(score(trained, ["a"], ScoringConfig(orders=2), source=["a"])): "orders: an autoregressive model's",
        lambda: list(score(GOLDEN, ["ant"], source=["ant"])): "source: this model was trained without a condition",
    }
    for call, sentence in calls.items():
        with pytest.raises(UserError) as caught:
            call()
        assert str(caught.value).startswith(sentence)


def test_a_model_that_always_had_a_source_needs_one(home: Path, tmp_path: Path) -> None:
    changed = config(home, model={"condition": {"drop": 0}}, training={"steps": 2})
    assert train(changed, tmp_path / "run", quiet=True)
    told = "this model was trained with a source for every text (drop: 0) and generates from a source alone"
    assert (tmp_path / "run/samples/step-2.txt").read_text() == f"no samples: {told}\n"
    pipe = open_pipeline(tmp_path / "run")
    assert len(pipe(1, source=SOURCES)) == 4
    with pytest.raises(UserError, match=r"^source: this model was trained with a source for every text \(drop: 0\)"):
        pipe(1)
    with pytest.raises(UserError, match="^cfg: this model was trained without dropping its condition"):
        pipe(1, source="ant", cfg=2.0)


def test_the_likelihood_of_a_text_is_that_given_its_source(
    home: Path, trained: Seq2SeqPipeline, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Texts of unequal lengths, scored together, have the loss of transformers each."""
    texts = [" ".join(reversed(source.split())) for source in SOURCES]
    found = dict(score(trained, [*texts, " "], source=[*SOURCES, "ant"]))
    assert [*found] == texts
    for source, text in zip(SOURCES, texts, strict=True):
        ids, labels = ([*trained.tokenizer(each, add_special_tokens=False)["input_ids"]] for each in (source, text))
        asked = {"input_ids": torch.tensor([[2, *ids]]), "labels": torch.tensor([[*labels, 3]])}
        with torch.no_grad():
            mean = float(trained.model(**asked).loss)
        assert found[text].nats == pytest.approx(mean * (len(labels) + 1), rel=1e-4)
        assert found[text].tokens == len(labels) + 1 and found[text].exact
    wrong = [bound.nats for _, bound in score(trained, texts, source=SOURCES[::-1])]
    assert all(nats > found[text].nats + 1 for nats, text in zip(wrong, texts, strict=True))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"mr": s, "text": t}) + "\n" for s, t in zip(SOURCES, texts, strict=True)))
    assert main(["score", str(home / "run"), str(pairs)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["nats"] for row in rows] == pytest.approx([found[text].nats for text in texts])
    pairs.write_text('{"mr": "ant", "text": "ant"}\n{"mr": "", "text": "bee"}\n')
    assert main(["score", str(home / "run"), str(pairs)]) == 2
    assert "line 2" in capsys.readouterr().err


def test_a_run_resumes_with_the_same_bits(home: Path, tmp_path: Path) -> None:
    dropout = {"dropout": 0.1, "condition": {"dropout": 0.1}}
    plain = config(home, model=dropout, training={"steps": 8, "save_every": 2, "keep": 9, "log_every": 1})
    assert train(plain, tmp_path / "run", quiet=True)
    wanted = load_file(tmp_path / "run/model/model.safetensors")
    for step in (6, 8):
        shutil.rmtree(tmp_path / f"run/checkpoints/checkpoint-{step}")
    shutil.rmtree(tmp_path / "run/model")
    assert train(plain, tmp_path / "run", quiet=True)
    found = load_file(tmp_path / "run/model/model.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    steps = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "loss" in row] == list(range(1, 9))


def test_fine_tuning_and_lora_start_from_a_run(home: Path, tmp_path: Path, trained: Seq2SeqPipeline) -> None:
    for name, more in (("tuned", {}), ("lora", {"adapter": LORA})):
        changed = config(home, init_from=str(home / "run"), training={"steps": 2}, **more)
        assert train(changed, tmp_path / name, write_samples=False, quiet=True)
    rows = open_pipeline(home / "run", adapter=tmp_path / "lora")(4, source=SOURCES, temperature=0.5)
    assert reversals(rows) > 0.8
    assert reversals(open_pipeline(tmp_path / "tuned")(4, source=SOURCES, temperature=0.5)) > 0.8
    wider = config(home, init_from=str(home / "run"), model={"width": 64})
    with pytest.raises(UserError, match="^model: expected the settings of"):
        train(wider, tmp_path / "wider", quiet=True)


def test_the_command_line_generates_and_evaluates(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sources, pairs = tmp_path / "sources.txt", tmp_path / "pairs.jsonl"
    sources.write_text("".join(f"{source}\n" for source in SOURCES))
    assert main(["generate", str(home / "run"), "--source", str(sources), "--temperature", "0.5", "--candidates", "3"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["source"] for row in rows] == SOURCES and rows[1]["text"] == "elm oak"
    assert main(["generate", str(home / "run"), "--source", str(sources), "--steps", "4"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    lines = [{"source": source, "target": " ".join(reversed(source.split()))} for source in SOURCES]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = evaluate_references(pairs, models=[home / "run"], sampling=[("temperature", "0.5")], ter=False, quiet=True)
    assert report.rows[-1].figures["BLEU"].value == pytest.approx(100)
    with pytest.raises(UserError, match=r"^sampling\.steps: an autoregressive model samples one token after the other"):
        evaluate_references(pairs, models=[home / "run"], sampling=[("steps", "9")], quiet=True)
