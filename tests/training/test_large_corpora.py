"""A run on a large corpus, from the cache, computes what it computes without one, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_runs import tiny_config

from diffusionlm.config import UserError, to_plain
from diffusionlm.data import rows, store
from diffusionlm.data.batches import encode
from diffusionlm.data.tokenizers import BytePairs
from diffusionlm.training.run import RunConfig, prepare, train

TRAINING = {"steps": 4, "save_every": 4, "evaluate_every": 4, "sample_every": 4}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFUSIONLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rows, "BLOCK", 30)
    return tmp_path / "cache"


def result(config: RunConfig, folder: Path) -> dict[str, object]:
    assert train(config, folder, quiet=True)
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timeless = [{name: value for name, value in row.items() if "second" not in name} for row in logged]
    model = folder / "model"
    weights = {name: value.tolist() for name, value in load_file(model / "model.safetensors").items()}
    files = [folder / "data.json", model / "config.json", model / "tokenizer.json", *sorted((folder / "samples").iterdir())]
    return {"log": timeless, "weights": weights, **{path.name: path.read_text() for path in files}}


@pytest.mark.parametrize("bpe", [False, True], ids=["words", "bpe"])
def test_a_run_with_the_cache_is_that_without(
    bpe: bool, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"tokenizer": to_plain(BytePairs(80)), "too_long": "split", "max_length": 24} if bpe else {}
    before: dict[Path, int] = {}
    config, found, said = tiny_config(tmp_path, training=TRAINING, data=data), [], []
    for number, size in enumerate((2**40, 1, 1)):
        monkeypatch.setattr(store, "LARGE", size)
        found.append(result(config, tmp_path / f"run-{number}"))
        lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
        said.append([line for line in lines if line.startswith(("train:", "validation:"))])
        made = {path: path.stat().st_mtime_ns for path in cache.glob("*/complete.json")}
        assert len(made) == (0 if number == 0 else 5)  # texts, a tokenizer, rows of two splits, co-occurrences
        assert number < 2 or made == before
        before = made
    assert found[0] == found[1] == found[2] and said[0] == said[1] == said[2]


def test_few_held_out_texts_beside_many_training_texts_are_cached_too(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path)
    monkeypatch.setattr(store, "LARGE", 1)
    size = config.data.corpus.load()["validation"].data.column("text").nbytes
    monkeypatch.setattr(store, "LARGE", size + 1)
    _, tokenizer, train_rows, validation = prepare(config)
    assert isinstance(train_rows, rows.TokenRows) and isinstance(validation, rows.TokenRows)
    assert [*validation] == encode(config.data.corpus.load()["validation"]["text"][:], tokenizer, config.data.max_length).ids


def test_a_run_that_resumes_with_another_corpus_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LARGE", 1)
    config = tiny_config(tmp_path, training={**TRAINING, "sample_every": 100})
    train(config, tmp_path / "run", quiet=True, write_samples=False)
    (tmp_path / "run" / "model" / "finished").unlink()
    texts = tmp_path / "texts.txt"
    texts.write_text(texts.read_text() + "\nOne more text, about a pub.")
    with pytest.raises(UserError, match="the training texts differ from those that this run started with"):
        train(config, tmp_path / "run", quiet=True, write_samples=False)
