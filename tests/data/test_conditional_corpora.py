"""Sources in corpora: columns of data sets, parts of columns, pairs, and the rows that have none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest
from tiny_sources import OWN, PLAIN, WORDS, config

from diffusionlm.config import UserError
from diffusionlm.data.corpora import Corpus, Hub, Pairs, to_dataset
from diffusionlm.data.tokenizers import of_sources
from diffusionlm.models.source import Source
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.training.run import train

PAIRS = [(" ".join(digits), " ".join(map(WORDS.__getitem__, digits))) for digits in (a + b for a in WORDS for b in WORDS)]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def written(folder: Path, rows: Sequence[Mapping[str, Any]], *splits: str) -> str:
    """Write rows as the JSON lines of each split; return the folder."""
    folder.mkdir()
    for split in splits or ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def read(corpus: Corpus, column: str = "source") -> list[tuple[str, str]]:
    """Return the sources and texts of a corpus's training rows."""
    rows = corpus.load()["train"]
    return list(zip(Source(column=column).values(rows), rows["text"], strict=True))


def test_a_column_of_a_data_set_is_the_source(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", [{"question": a, "answer": b} for a, b in PAIRS])
    assert read(Hub(folder, text="answer", validation_share=0), "question") == PAIRS


@pytest.mark.parametrize("streaming", [False, True])
def test_translations_are_parts_of_one_column(streaming: bool, tmp_path: Path) -> None:
    folder = written(tmp_path / "data", [{"translation": {"de": a, "en": b}, "id": 1} for a, b in PAIRS])
    take = 16 if streaming else None
    corpus = Hub(folder, text="translation.en", validation_share=0, streaming=streaming, take=take)
    assert read(corpus, "translation.de") == PAIRS
    with pytest.raises(UserError, match="the corpus has no column 'translation'; did you mean 'translation.de'"):
        read(corpus, "translation")
    with pytest.raises(UserError, match=r"train: no column 'translation.fr' among 'translation.de', 'translation.en', 'id'"):
        Hub(folder, text="translation.fr").load()


def test_the_type_of_translations_is_taken_apart_too(tmp_path: Path) -> None:
    features = datasets.Features({"translation": datasets.Translation(["de", "en"])})
    rows = datasets.Dataset.from_list([{"translation": {"de": a, "en": b}} for a, b in PAIRS], features=features)
    found = Hub("none", text="translation.en")._tidied(rows, "here")
    assert list(zip(found["translation.de"], found["text"], strict=True)) == PAIRS


@pytest.mark.parametrize("name", ["valid", "validation", "dev"])
def test_the_splits_of_diffuseq(name: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "data", [{"src": a, "trg": b} for a, b in PAIRS], "train", name, "test")
    assert {split: len(rows) for split, rows in Pairs(folder).load().items()} == dict.fromkeys(
        ("train", "validation", "test"), 16
    )
    assert read(Pairs(folder)) == PAIRS


def test_another_column_called_source_does_not_matter(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", [{"src": a, "trg": b, "source": "the web"} for a, b in PAIRS], "train")
    assert read(Pairs(folder, validation_share=0)) == PAIRS


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "None"),
        ("", "''"),
        (" ", "' '"),
        (7, "7"),
        (["a"], "['a']"),
        ("a\0b", "U+0000, a control character, in 'a\\x00b'"),
    ],
)
def test_a_row_without_a_source_is_named_by_its_text(value: Any, found: str) -> None:
    rows = to_dataset([{"text": "one text", "source": "one"}, {"text": "another", "source": value}])
    with pytest.raises(UserError) as caught:
        Source().values(rows)
    assert str(caught.value) == (
        f"model.condition: expected a source text in column 'source', got {found} in text 2, 'another'"
    )


def test_sources_and_targets_have_their_own_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A longer text is cut, which is said; a longer source is refused."""
    rows = [{"src": "1 2 3 4 1 2", "trg": "ant bee cat dog"}] * 20
    corpus = {"name": "pairs", "path": written(tmp_path / "data", rows, "train", "valid")}
    given: dict[str, Any] = {"data": {"corpus": corpus, "max_length": 5}}
    run = config(tmp_path, PLAIN, model={"condition": OWN}, **given)
    train(run, tmp_path / "run", write_samples=False, quiet=True)
    assert "train: 20 of 20 texts are longer than 5 tokens and were cut" in capsys.readouterr().err
    pipe = open_pipeline(tmp_path / "run")
    own = of_sources(pipe.tokenizer)
    assert own is not None and (pipe.tokenizer.model_max_length, own.model_max_length) == (5, 8)
    short = config(tmp_path, PLAIN, model={"condition": {**OWN, "max_length": 5}}, **given)
    with pytest.raises(
        UserError, match=r"^source: expected at most 5 tokens \(model.condition.max_length\), got 6: '1 2 3 4 1 2'"
    ):
        train(short, tmp_path / "short", write_samples=False, quiet=True)


def test_texts_stay_text_where_some_are_missing(tmp_path: Path) -> None:
    """A column of texts with a gap is one of texts: digits are no numbers, and "null" is a word."""
    values = ["007", None, "null", "true", "[1]", "1e3"]
    assert to_dataset([{"source": value} for value in values])["source"][:] == values
    folder = written(tmp_path / "data", [{"src": value, "trg": value} for value in values], "train")
    assert read(Pairs(folder, validation_share=0)) == [(value, value) for value in values if value]
