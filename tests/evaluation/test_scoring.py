"""Scoring texts: what the command prints, what it reads, what it refuses."""

from __future__ import annotations

import io
import json
import math
import random
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import restaurant_texts, tiny_config, tiny_plain

from diffusionlm.cli import main
from diffusionlm.config import UserError, build
from diffusionlm.data.corpora import read_texts
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.evaluation.judge import Judge, perplexity
from diffusionlm.evaluation.likelihood import Bound, bound
from diffusionlm.evaluation.scoring import SCORERS, ScoringConfig, score, summary
from diffusionlm.models.backbones import Transformer
from diffusionlm.models.causal import CausalConfig
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.models.masked import MaskedConfig
from diffusionlm.models.spec import ModelSpec
from diffusionlm.pipelines.auto import PIPELINES
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.training.run import RunConfig, save_model, train

FAST = ["--strata", "4"]
SMALL = Transformer(layers=1, width=16, heads=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with redirect_stderr(io.StringIO()):
        train(tiny_config(folder, training={"steps": 2}), folder / "run", write_samples=False, quiet=True)
    return folder / "run"


def scored(
    arguments: list[str], capsys: pytest.CaptureFixture[str], fast: list[str] = FAST
) -> tuple[list[dict[str, object]], str]:
    """Run ``score`` and return its rows and what it said."""
    assert main(["score", *arguments, *fast]) == 0
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["score", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_rows_and_their_summary(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = restaurant_texts(3)
    (tmp_path / "texts.txt").write_text(f"{texts[0]}\n\n{texts[1]}\nThe zyxq serves qqqq.\n")
    rows, said = scored([str(trained), str(tmp_path / "texts.txt")], capsys)
    assert [row["text"] for row in rows] == [*texts[:2], "The zyxq serves qqqq."]
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert [row["unknown"] for row in rows] == [0, 0, 2]
    assert (rows[2]["tokens"], rows[2]["characters"]) == (6, len("The zyxq serves qqqq."))
    for row in rows:
        terms = [float(str(row[name])) for name in ("prior", "reconstruction", "diffusion", "length_nats")]
        assert math.fsum(terms) == pytest.approx(float(str(row["nats"])))
    tokens = sum(int(str(row["tokens"])) for row in rows)
    mean = math.fsum(float(str(row["nats"])) for row in rows) / tokens
    assert f"at most {mean:.4f} +- " in said
    assert f"3 texts, {tokens} tokens" in said
    assert "2 of them unknown words" in said
    assert rows == scored([str(trained), str(tmp_path / "texts.txt")], capsys)[0]


def test_every_format_reads_the_same_texts(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = restaurant_texts(2)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "a.csv").write_text('id,review\n1,"' + texts[0] + '"\n2,"' + texts[1] + '"\n')
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(texts).encode())))
    found = [
        scored([str(trained), name, *more], capsys)[0]
        for name, more in (
            (str(tmp_path / "a.jsonl"), []),
            (str(tmp_path / "a.csv"), ["--column", "review"]),
            ("-", []),
        )
    ]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 2


def test_places_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\nfirst\n"second\nline"\n\nthird\n')
    assert read_texts(str(path)) == [
        (f"{path}, line 2", "first"), (f"{path}, line 3", "second\nline"), (f"{path}, line 6", "third"),
    ]  # fmt: skip


def test_what_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, texts = str(trained), tmp_path / "texts.txt"
    texts.write_text("The food is good.\n" + "very " * 47 + "good\n")
    sentence = refusal([model, str(texts)], capsys)
    assert f"{texts}, line 2: 48 tokens, more than this model's maximum of 46" in sentence
    texts.write_text("The food is good.\n")
    assert "strata: expected 2 or more, got 1" in refusal([model, str(texts), "--strata", "1"], capsys)
    assert "seed: expected 0 or more, got -1" in refusal([model, str(texts), "--seed", "-1"], capsys)
    assert "there is no such file" in refusal([model, str(tmp_path / "none.txt")], capsys)
    assert "expected a model folder" in refusal([str(tmp_path), str(texts)], capsys)
    assert "dtype: expected one of" in refusal([model, str(texts), "--dtype", "fp8"], capsys)
    (tmp_path / "a.jsonl").write_text('{"opinion": "good"}\n')
    assert "no column 'text' among 'opinion'; the setting --column names" in refusal([model, str(tmp_path / "a.jsonl")], capsys)
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "there is no text in it" in refusal([model, str(tmp_path / "empty.txt")], capsys)


def test_from_python(trained: Path) -> None:
    texts = restaurant_texts(3)
    found = list(score(trained, texts, ScoringConfig(strata=4)))
    pipeline = Pipeline.from_pretrained(trained)
    rows = [pipeline.tokenizer(text)["input_ids"] for text in texts]
    assert found == list(zip(texts, bound(pipeline.model, rows, texts, strata=4), strict=True))
    assert list(score(pipeline, ["", *texts], ScoringConfig(strata=4))) == found  # an open pipeline; an empty text
    with pytest.raises(UserError, match="line 9: 47 tokens"):
        score(trained, ["good", "good " * 47], places=["line 8", "line 9"])


@pytest.mark.parametrize("model", [ModelConfig(dimension=16, backbone=SMALL), MaskedConfig(backbone=SMALL), CausalConfig()])
def test_every_kind_reaches_the_truth_of_a_silent_network(model: ModelSpec, tmp_path: Path) -> None:
    """All words cost the same then: a diffusion model bars START, END and PAD, an autoregressive one nothing."""
    random.seed(0)
    texts = [" ".join(random.choices("abcdefghij", k=random.randint(1, 8))) for _ in range(30)]
    tokenizer = WordTokenizer().make(["a b c d e f g h i j"])
    V = len(tokenizer)
    made: Any = model.make(tokenizer, [[2, 4, 5, 6, 3]], 12)
    last = made.lm_head if made.can_generate() else made.network.down
    for weight in last.parameters():
        torch.nn.init.zeros_(weight)
    made.config.length_counts = [0, 0, 0, 3, 1]
    save_model(made, tokenizer, SamplingConfig(), tmp_path / "model")
    options = ScoringConfig(strata=128 if made.can_generate() else 1024, batch_size=256)
    found = [one for _, one in score(tmp_path, texts, options)]
    words = [len(text.split()) for text in texts]
    assert [one.tokens for one in found] == [n + 1 for n in words]
    assert SCORERS.keys() == PIPELINES.keys()
    if made.can_generate():
        assert [one.nats for one in found] == pytest.approx([(n + 1) * math.log(V) for n in words], rel=1e-6)
        assert all(one.exact and one.deviation == 0 and one.nats == one.reconstruction for one in found)
        assert str(summary(found)).startswith(f"exactly {math.log(V):.4f} nats per token; ")
        return
    lengths = [-math.log(([0, 3, 1] + 10 * [0])[n] + 1) + math.log(14) for n in words]
    assert [one.length for one in found] == pytest.approx(lengths)
    truth = sum(words) * math.log(V - 3) + sum(lengths)
    error = math.hypot(*(one.deviation for one in found))
    assert sum(one.nats for one in found) == pytest.approx(truth, abs=4 * error + 0.02 * len(texts))
    assert error < 0.02 * truth and not any(one.exact for one in found)


def test_an_autoregressive_run_is_scored_by_its_own_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text longer than the model reads is no mistake there: it is scored in windows."""
    model = {"name": "causal", "layers": 1, "width": 16, "heads": 2}
    config = build(RunConfig, {**tiny_plain(tmp_path, training={"steps": 2}), "model": model, "objective": "causal"})
    train(config, tmp_path / "run", write_samples=False, quiet=True)
    texts = [*restaurant_texts(2), "very " * 60 + "good"]
    (tmp_path / "three.txt").write_text("\n".join(texts))
    capsys.readouterr()
    rows, said = scored([str(tmp_path / "run"), str(tmp_path / "three.txt")], capsys, [])
    judge = Judge.load(tmp_path / "run")
    assert [row["nats"] for row in rows] == pytest.approx([one.nats for one in judge.score(texts)], rel=1e-5)
    assert [row["exact"] for row in rows] == [True] * 3
    assert f"exactly {math.log(perplexity(judge.score(texts))):.4f} nats per token" in said


def test_the_summary_is_a_mean_over_tokens() -> None:
    bounds = [Bound(1.0, 2.0, 3.0, 4.0, 0.3, 5, 20, 1), Bound(0.0, 0.0, 8.0, 2.0, 0.4, 15, 30, 0)]
    found = summary(bounds)
    assert (found.nats_per_token, found.standard_error) == pytest.approx((1.0, 0.5 / 20))
    assert (found.prior, found.reconstruction, found.diffusion, found.length) == pytest.approx((0.05, 0.1, 0.55, 0.3))
    assert found.bits_per_character == pytest.approx(20 / math.log(2) / 50)
    assert (found.texts, found.tokens, found.characters, found.unknown) == (2, 20, 50, 1)
    assert math.isnan(summary([Bound(1, 1, 1, 1, 1, 1, 0, 0)]).bits_per_character)
