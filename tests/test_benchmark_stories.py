"""Infilling of middle sentences in benchmarks/stories.py: gaps, given words, and a small table of all models."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import middle_sentences
import pytest
import stories as benchmark
import torch
from tiny_runs import tiny_config

from diffusionlm.config import UserError
from diffusionlm.controls import Infill
from diffusionlm.data.tokenizers import decode_texts
from diffusionlm.evaluation.control.metrics import filling
from diffusionlm.evaluation.judge import Judge
from diffusionlm.evaluation.ngrams import NGrams
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.causal import CausalPipeline
from diffusionlm.training.run import train

STORY = 'Tom ran. "Is it Mr Lee?" he said! He met a dog. It was big. He ran home.'
NETWORK = {"name": "transformer", "layers": 1, "width": 16, "heads": 2, "expansion": 2}
CHANGES: dict[str, dict[str, Any]] = {
    "ours": {"model": {"backbone": {"name": "leave-one-out", "layers": 1, "query_layers": 1, "width": 16, "heads": 2}}},
    "masked": {"model": {"name": "masked"}, "objective": "masked", "sampling": {"sampler": "maskgit"}},
    "autoregressive": {"model": {"name": "causal", "layers": 1, "width": 16, "heads": 2}, "objective": "causal"},
    "paper": {
        "model": {
            "prediction": "x0", "embedding": "free", "self_conditioning": False, "explicit_length": False,
            "schedule": "sqrt", "backbone": NETWORK,
        },
        "objective": "regression",
    },
}  # fmt: skip


def stories(count: int) -> list[str]:
    draw = random.Random(0)
    parts = ("Tom", "Ann", "The dog"), ("saw", "met", "left"), ("a cat", "the park", "his friend", "home")
    return [" ".join(" ".join(map(draw.choice, parts)) + "." for _ in range(5)) for _ in range(count)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the runs of all rows, trained for two steps."""
    folder = tmp_path_factory.mktemp("stories")
    (folder / "texts.txt").write_text("\n".join(stories(60)))
    for row, changes in CHANGES.items():
        data = {"tokenizer": {"name": "bpe", "vocab_size": 90}, "max_length": 96}
        plain = {"data": data, "training": {"steps": 2}, **changes}
        if row == "autoregressive":
            plain["sampling"] = {"steps": 28}
        config = tiny_config(folder, **plain)
        train(config, folder / row, write_samples=False, quiet=True)
    return {row: folder / row for row in CHANGES}


def test_a_gap_is_the_third_of_five_sentences() -> None:
    gap = middle_sentences.gap_of(STORY)
    assert gap is not None and gap.hidden == "He met a dog."
    assert (gap.left, gap.right) == ('Tom ran. "Is it Mr Lee?" he said!', "It was big. He ran home.")
    assert gap.filled(gap.hidden) == STORY and str(Infill(gap.filled("{}")))
    assert middle_sentences.gap_of("One. Two. Three. Four.") is None and middle_sentences.gap_of(STORY + "}") is None


def test_all_models_fill_the_same_gaps_and_keep_the_given_words(runs: dict[str, Path], tmp_path: Path) -> None:
    train_texts, test_texts = stories(60), [*stories(66)[60:], "No story."]
    judge, others = Judge.load(runs["autoregressive"]), {"2-gram": NGrams(train_texts, 2)}
    texts = {"train": train_texts, "test": test_texts}
    table = middle_sentences.infilling(runs, texts, judge, others, 3, 2, tmp_path)
    report = json.loads((tmp_path / "infilling.json").read_text())
    rows = {row["row"]: row for row in report["rows"]}
    best = "autoregressive, best of 8 by the right side"
    assert [*rows] == [
        middle_sentences.REFERENCE, middle_sentences.OTHER, "ours", "masked", "autoregressive, left side alone", best
    ]  # fmt: skip
    assert report["refused"] == ["paper"] and table.splitlines()[-1].startswith("paper: takes no given words")
    assert (
        rows[middle_sentences.REFERENCE]["bleu"]["mean"]
        == pytest.approx(1)
        == rows[middle_sentences.REFERENCE]["rouge"]["mean"]
    )
    assert rows[middle_sentences.OTHER]["bleu"]["mean"] < 1
    gaps = middle_sentences.gaps_of(test_texts, open_pipeline(runs["ours"]).tokenizer, 3)
    for path in tmp_path.glob("*-3-2-*.json"):
        found = json.loads(path.read_text())
        assert found["cpu_seconds"] > 0 and [len(each) for each in found["texts"]] == [2, 2, 2]
        for gap, each in zip(gaps, found["texts"], strict=True):
            assert all(text.startswith(gap.left) and text.endswith(gap.right) for text in each)
            assert all(filling(gap, text) for text in each)
    saved = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-3-2-*.json")}
    assert len(saved) == 4 and middle_sentences.infilling(runs, texts, judge, others, 3, 2, tmp_path) == table
    assert all(path.stat().st_mtime_ns == before for path, before in saved.items())


def test_the_best_of_several_makes_the_right_side_most_probable(runs: dict[str, Path]) -> None:
    pipe = open_pipeline(runs["autoregressive"])
    assert isinstance(pipe, CausalPipeline)
    gap = middle_sentences.gap_of(stories(61)[-1])
    assert gap is not None
    begun, end = (middle_sentences.encoded(pipe.tokenizer, text) for text in (gap.left, gap.right))
    several = middle_sentences.sentences_after(pipe, begun, [(0, 0, c) for c in range(4)])

    def nats(row: list[int]) -> float:
        """Return -log p(right side and EOS | what precedes it), from the logits."""
        ids = torch.tensor([[pipe.tokenizer.bos_token_id, *row, *end, pipe.tokenizer.eos_token_id]])
        with torch.no_grad():
            losses = -pipe.model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
        return float(losses[len(row) :].sum())

    best = min(several, key=nats)
    expected = gap.filled(*decode_texts(pipe.tokenizer, [best[len(begun) :]]))
    assert len({tuple(row) for row in several}) > 1
    assert middle_sentences.fill_from_left(pipe, 4)(gap, 1, 0) == [expected]


def test_a_continuation_ends_behind_a_sentence(runs: dict[str, Path]) -> None:
    pipe = open_pipeline(runs["autoregressive"])
    assert isinstance(pipe, CausalPipeline)
    rows = middle_sentences.sentences_after(
        pipe, middle_sentences.encoded(pipe.tokenizer, "Tom ran."), [(1, i) for i in range(8)]
    )
    texts = [text.removeprefix("Tom ran.") for text in decode_texts(pipe.tokenizer, rows)]
    assert all("." not in text[:-1] for text in texts) and any(text.endswith(".") for text in texts)


def test_more_gaps_than_there_are_stories_are_refused(runs: dict[str, Path]) -> None:
    tokenizer = open_pipeline(runs["ours"]).tokenizer
    with pytest.raises(UserError, match=re.escape("--gaps: expected at most 2, as many as there are held-out stories")):
        middle_sentences.gaps_of(stories(2), tokenizer, 3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--gaps", "-1"], "--gaps: expected 0 or more, got -1"),
        (["--fillings", "0"], "--fillings: expected more than 0, got 0"),
        (["--gaps", "0", "--fillings", "2"], "--fillings: nothing is infilled with --gaps 0, so this option has no effect"),
    ],
)
def test_impossible_numbers_of_gaps_are_refused(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--stories", "stories.txt", *more])
    assert message in capsys.readouterr().err
