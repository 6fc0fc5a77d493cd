"""Folders of files and patterns as corpora."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusionlm.config import UserError, build
from diffusionlm.data import store
from diffusionlm.data.batches import DataConfig
from diffusionlm.data.corpora import Corpus, Files
from diffusionlm.data.shards import files_of


@pytest.fixture(autouse=True, params=[2**40, 1], ids=["small", "large"])
def _sizes(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSIONLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "LARGE", request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for name, text in {"b.txt": "three\n", "a.TXT": "one\n\ntwo\n", "c.txt": "four"}.items():
        (tmp_path / "texts" / name).write_text(text)
    return tmp_path / "texts"


def texts_of(corpus: Corpus) -> list[str]:
    return corpus.load()["train"]["text"][:]


def refusal(name: object) -> str:
    with pytest.raises(UserError) as caught:
        Files(str(name), validation_share=0).load()
    return str(caught.value)


def test_a_folder_and_a_pattern_are_all_of_their_files(folder: Path) -> None:
    assert texts_of(Files(str(folder), validation_share=0)) == ["one", "two", "three", "four"]
    assert texts_of(Files(f"{folder}/*.txt", validation_share=0)) == ["three", "four"]
    assert texts_of(Files(f"{folder}/[ab].*", validation_share=0)) == ["one", "two", "three"]
    (folder / "[ab].txt").write_text("itself\n")
    assert texts_of(Files(f"{folder}/[ab].txt", validation_share=0)) == ["itself"]


def test_a_corpus_is_named_by_a_folder_or_a_pattern(folder: Path) -> None:
    for name in (str(folder), f"{folder}/*.t?t", f"{folder}/**/*.txt"):
        assert build(DataConfig, {"corpus": name}).corpus == Files(name)


def test_other_names_in_a_folder_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "README.md").write_text("no texts")
    (folder / "older").mkdir()
    (folder / ".hidden.txt").write_text("no text")
    assert len(texts_of(Files(str(folder), validation_share=0))) == 4
    assert f"{folder}: 2 of 5 names in this folder are left out, such as README.md\n" in capsys.readouterr().err


def test_a_folder_and_a_pattern_without_files_are_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert refusal(folder / "empty").startswith(f"{folder}/empty: expected files ending in one of .txt, ")
    assert refusal(folder / "*.csv") == f"{folder}/*.csv: no file has a name of this pattern"
    assert f"this pattern also matches the folder {folder}/empty" in refusal(folder / "*")
    (folder / "empty").rmdir()
    (folder / "d.md").write_text("no texts")
    assert refusal(folder / "*").startswith(f"{folder}/d.md: expected a file ending in one of .txt, ")
    assert "there is no such file" in refusal(folder / "none.txt")
    (folder / "link.txt").symlink_to("gone.txt")
    assert refusal(folder / "link.txt") == f"{folder}/link.txt: this link leads to no file, but to gone.txt"


def test_a_wrong_file_among_others_is_named(folder: Path) -> None:
    (folder / "b.txt").write_bytes(b"fine\nCaf\xe9\n")
    assert refusal(folder).startswith(f"{folder}/b.txt, line 2: expected UTF-8 text, got the byte 0xe9")
    (folder / "b.txt").write_bytes(b"fine\nfine\na\x01\n")
    assert refusal(folder).startswith(f"{folder}/b.txt, line 3: U+0001, a control character")
    (folder / "b.txt").write_text("\n")
    assert refusal(folder) == f"{folder}/b.txt: there is no text in it"


def test_tables_with_the_same_columns_are_joined_and_others_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one", "food": "Italian"}) + "\n")
    (tmp_path / "b.tsv").write_text("text\tfood\ntwo\tFrench\n\tThai\nthree\tIndian\n")
    found = Files(f"{tmp_path}/?.*", attributes=("food",), validation_share=0).load()["train"]
    assert found[:] == {
        "text": ["one", "two", "three"],
        "attributes": [{"food": name} for name in ("Italian", "French", "Indian")],
    }
    (tmp_path / "c.csv").write_text("text,area\nfour,riverside\n")
    pattern = f"{tmp_path}/?.*"
    assert (
        refusal(pattern)
        == f"{tmp_path}/c.csv: expected the columns of {tmp_path}/a.jsonl, but only {tmp_path}/c.csv has 'area'"
    )
    (tmp_path / "c.csv").write_text("text\nfour\n")
    assert (
        refusal(pattern)
        == f"{tmp_path}/c.csv: expected the columns of {tmp_path}/a.jsonl, but only {tmp_path}/a.jsonl has 'food'"
    )
    (tmp_path / "c.csv").write_text("text,food\nfo\x01ur,no\n")
    assert refusal(pattern).startswith(f"{tmp_path}/c.csv, line 2: U+0001, a control character")


def test_files_are_ordered_by_name(folder: Path) -> None:
    assert [path.name for path in files_of(str(folder))] == ["a.TXT", "b.txt", "c.txt"]
