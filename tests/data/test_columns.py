"""Columns of texts under other names, pairs, and class labels: found, reported, and refused where several may be meant."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest

from diffusionlm.config import UserError
from diffusionlm.data.columns import PAIRS, TEXTS
from diffusionlm.data.corpora import Corpus, Files, Hub, Pairs, read_texts
from diffusionlm.data.references import read_items, read_sources

TEXT = ["The pub is cheap.", "The food; is good."]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows in the format that the name of the file says; a table has the delimiter ";"."""
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(list(rows)).to_parquet(path)
    elif path.suffix == ".csv":
        lines = [rows[0], *(row.values() for row in rows)]
        path.write_text("".join(";".join(f'"{cell}"' for cell in line) + "\n" for line in lines))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def refusal(function: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        function()
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("column", ["sentence", "Review"])
def test_the_column_of_texts_is_found_by_its_usual_names(
    name: str, column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / name, [{"id": str(i), column: text, "mood": "good"} for i, text in enumerate(TEXT)])
    capsys.readouterr()
    rows = Files(path, validation_share=0).load()["train"]
    assert rows["text"][:] == TEXT and {*rows.column_names} == {"text", "id", "mood"}
    said = f"{path}: it has no column 'text'; the texts are those of the column {column!r}\n"
    assert capsys.readouterr().err == said
    assert [text for _, text in read_texts(path)] == TEXT
    assert capsys.readouterr().err == said
    streamed = Files(path, validation_share=0, streaming=True)
    assert streamed.load()["train"]["text"][:] == TEXT
    assert capsys.readouterr().err.count(said) == 1


def test_text_is_read_where_it_is_and_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "a.jsonl", [{"sentence": "x", "review": "y"}, {"text": TEXT[0], "sentence": "z"}])
    assert Files(path, validation_share=0).load()["train"]["text"][:] == TEXT[:1]
    assert "column" not in capsys.readouterr().err.replace("there is no text in 'text', and the row is left out", "")
    assert Files(path, text="review", validation_share=0).load()["train"]["text"][:] == ["y"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_several_columns_that_may_be_meant_are_refused(name: str, tmp_path: Path) -> None:
    rows = [{"id": "1", "review": "x", "sentence": "y"}] * 2
    path = written(tmp_path / name, rows)
    named = "'review' or 'sentence', of the columns 'id', 'review', 'sentence'; the setting"
    expected = "expected a column 'text', or one that is clearly meant, but it may be"
    assert refusal(Files(path).load) == f"{path}: {expected} {named} data.corpus.text names the column of texts"
    assert refusal(lambda: read_texts(path, setting="--column")).endswith(f"{named} --column names the column of texts")


def test_pairs_are_no_texts_and_other_columns_are_listed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"document": "x", "summary": "y"}])
    assert "it may be 'document' or 'summary', of the columns" in refusal(Files(path).load)
    path = written(tmp_path / "b.jsonl", [{"kommentar": "x", "n": 1}])
    sentence = "no column 'text' among 'kommentar', 'n'; the setting data.corpus.text names the column of texts"
    assert refusal(Files(path).load) == f"{path}: {sentence}"
    path = written(tmp_path / "c.jsonl", [{"review": 5, "story": "x"}])
    assert Files(path, validation_share=0).load()["train"]["text"][:] == ["x"], "numbers are no texts"


def labelled(folder: Path) -> Path:
    """Write a data set with class labels, of texts and of words, into parquet files of a folder; return it."""
    mood = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({
        "mood": mood, "sentence": datasets.Value("string"), "tags": datasets.List(datasets.ClassLabel(names=["D", "N"])),
    })  # fmt: skip
    rows = {"mood": [1, 0, -1], "sentence": [*TEXT, "Bar food"], "tags": [[0, 1, 1], [0], []]}
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_of_a_data_set_have_their_names(streaming: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = labelled(tmp_path / "data")
    rows = Hub(str(folder), streaming=streaming, take=3, validation_share=0).load()["train"]
    assert rows[:] == {"mood": ["good", "bad", None], "text": [*TEXT, "Bar food"], "tags": [["D", "N", "N"], ["D"], []]}
    assert "split train: it has no column 'text'; the texts are those of the column 'sentence'" in capsys.readouterr().err
    rows = Hub(str(folder), attributes=("mood",), validation_share=0).load()["train"]
    assert rows["attributes"][:] == [{"mood": "good"}, {"mood": "bad"}, {}]


def test_labels_of_a_parquet_file_have_their_names(tmp_path: Path) -> None:
    file = str(labelled(tmp_path / "data") / "train.parquet")
    rows = Files(file, validation_share=0).load()["train"]
    assert rows["mood"][:] == ["good", "bad", None] and rows["tags"][:] == [["D", "N", "N"], ["D"], []]


def test_a_streamed_data_set_of_unknown_columns_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    written(tmp_path / "data" / "train.jsonl", [{"n": i, "content": text} for i, text in enumerate(TEXT)])
    corpus = Hub(str(tmp_path / "data"), streaming=True, validation_share=0)
    assert corpus.load()["train"]["text"][:] == TEXT
    assert capsys.readouterr().err.count("the texts are those of the column 'content'") == 1


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair != ("text", "summary")], ids=" ".join)
def test_usual_pairs_are_found(pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = pair
    path = written(tmp_path / "a.jsonl", [{"id": 1, source: "one", target: text} for text in TEXT])
    rows = Pairs(path, validation_share=0).load()["train"]
    assert rows["source"][:] == ["one", "one"] and rows["text"][:] == TEXT
    said = f"{path}: the sources are those of the column {source!r}, the targets those of {target!r}\n"
    assert capsys.readouterr().err == ("" if pair == ("src", "trg") else said)
    (item,) = read_items(path)
    assert item.source == read_sources(path)[0].source == "one" and list(item.references) == TEXT


def test_several_pairs_are_refused_and_a_named_one_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", [{"question": "a", "answer": "b", "input": "c", "output": "d"}])
    sentence = "the sources and targets may be 'input' and 'output' or 'question' and 'answer', of the columns 'question', "
    assert sentence in refusal(Pairs(path).load)
    assert refusal(Pairs(path).load).endswith("; data.corpus.source and data.corpus.target name them")
    corpus: Corpus = Pairs(path, source="question", target="answer", validation_share=0)
    assert corpus.load()["train"]["text"][:] == ["b"]
    path = written(tmp_path / "b.jsonl", [{"a": "a", "b": "b"}])
    assert "no column 'trg' among 'a', 'b'" in refusal(Pairs(path).load)


def test_names_are_compared_in_lower_case() -> None:
    assert all(name == name.casefold() for name in [*TEXTS, *(name for pair in PAIRS for name in pair)])
