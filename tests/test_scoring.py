"""Scoring texts: what the command prints, what it reads, what it refuses."""

from __future__ import annotations

import io
import json
import math
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from runs import restaurant_texts, tiny_config

from diffusionlm.cli import main
from diffusionlm.config import UserError
from diffusionlm.data import read_texts
from diffusionlm.likelihood import Bound, bound
from diffusionlm.pipeline import Pipeline
from diffusionlm.run import train
from diffusionlm.scoring import ScoringConfig, score, summary

FAST = ["--strata", "4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with redirect_stderr(io.StringIO()):
        train(tiny_config(folder, training={"steps": 2}), folder / "run", write_samples=False, quiet=True)
    return folder / "run"


def scored(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, object]], str]:
    """Run ``score`` and return its rows and what it said."""
    assert main(["score", *arguments, *FAST]) == 0
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
    assert (rows[2]["tokens"], rows[2]["characters"]) == (6, len("The [UNK] serves [UNK]."))
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
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(texts)))
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
        (f"{path}, line 2", "first"), (f"{path}, line 4", "second\nline"), (f"{path}, line 6", "third"),
    ]  # fmt: skip


def test_what_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, texts = str(trained), tmp_path / "texts.txt"
    texts.write_text("The food is good.\n" + "very " * 47 + "good\n")
    sentence = refusal([model, str(texts)], capsys)
    assert f"{texts}, line 2: 48 tokens, more than the 46 that this model reads" in sentence
    texts.write_text("The food is good.\n")
    assert "strata: expected 2 or more, got 1" in refusal([model, str(texts), "--strata", "1"], capsys)
    assert "seed: expected 0 or more, got -1" in refusal([model, str(texts), "--seed", "-1"], capsys)
    assert "there is no such file" in refusal([model, str(tmp_path / "none.txt")], capsys)
    assert "expected a model folder" in refusal([str(tmp_path), str(texts)], capsys)
    assert "dtype: expected one of" in refusal([model, str(texts), "--dtype", "fp8"], capsys)
    (tmp_path / "a.jsonl").write_text('{"review": "good"}\n')
    assert "no column 'text' among 'review'" in refusal([model, str(tmp_path / "a.jsonl")], capsys)
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "there is no text in it" in refusal([model, str(tmp_path / "empty.txt")], capsys)


def test_from_python(trained: Path) -> None:
    texts = restaurant_texts(3)
    found = list(score(trained, [("", text) for text in texts], ScoringConfig(strata=4)))
    pipeline = Pipeline.from_pretrained(trained)
    rows = [pipeline.tokenizer(text)["input_ids"] for text in texts]
    assert found == list(zip(texts, bound(pipeline.model, rows, texts, strata=4), strict=True))
    with pytest.raises(UserError, match="line 9: 47 tokens"):
        next(score(trained, [("line 9", "good " * 47)]))


def test_the_summary_is_a_mean_over_tokens() -> None:
    bounds = [Bound(1.0, 2.0, 3.0, 4.0, 0.3, 5, 20, 1), Bound(0.0, 0.0, 8.0, 2.0, 0.4, 15, 30, 0)]
    found = summary(bounds)
    assert (found.nats_per_token, found.standard_error) == pytest.approx((1.0, 0.5 / 20))
    assert (found.prior, found.reconstruction, found.diffusion, found.length) == pytest.approx((0.05, 0.1, 0.55, 0.3))
    assert found.bits_per_character == pytest.approx(20 / math.log(2) / 50)
    assert (found.texts, found.tokens, found.characters, found.unknown) == (2, 20, 50, 1)
    assert math.isnan(summary([Bound(1, 1, 1, 1, 1, 1, 0, 0)]).bits_per_character)
