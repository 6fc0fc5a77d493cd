"""Streamed corpora: each pass has the texts of the files, in an order that a checkpoint's position continues exactly."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy as np
import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError, build
from diffusionlm.data import blocks
from diffusionlm.data.batches import DataConfig, encode
from diffusionlm.data.corpora import Corpus, Files, Hub
from diffusionlm.data.streamed_batches import StreamedBatches
from diffusionlm.data.streams import TextPass
from diffusionlm.data.tokenizers import WordTokenizer, decode_texts
from diffusionlm.evaluation.jobs import plain_corpus

TEXTS = [f"t{i} {'a b c ' * (i % 4)}end" for i in range(90)]
Batches = list[list[list[int]]]


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(blocks, "ROWS", 7)
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "a.txt.gz").write_bytes(gzip.compress("\n\n".join(TEXTS[:30]).encode()))
    (folder / "b.jsonl").write_text("".join(json.dumps({"n": 1, "text": text}) + "\n" for text in TEXTS[30:60]))
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS[60:]}), folder / "c.parquet")
    return folder


@pytest.fixture
def corpora(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Corpus]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub = tmp_path / "hub"
    hub.mkdir()
    for number in range(3):
        (hub / f"train-{number}.jsonl").write_text("".join(json.dumps({"t": {"en": text}}) + "\n" for text in TEXTS[number::3]))
    kind = {"streaming": True, "first_texts": 60, "shuffle_buffer": 20, "validation_share": 0.1}
    return {
        "files": build(Files, {"train": str(shards), **kind}),
        "hub": build(Hub, {"path": str(hub), "text": "t.en", **kind}),
    }


def tokenizer() -> PreTrainedTokenizerFast:
    return WordTokenizer().make(TEXTS)


def batches(corpus: Corpus, number: int, rank: int = 0, world: int = 1) -> StreamedBatches:
    stream = corpus.stream()
    assert stream is not None
    found = StreamedBatches(stream, tokenizer(), DataConfig(max_length=20))
    found.set(64, number, seed=1, rank=rank, world=world)
    return found


def texts_in(found: Batches) -> list[str]:
    return decode_texts(tokenizer(), [row for batch in found for row in batch])


def of_passes(corpus: Corpus, count: int) -> list[Batches]:
    passes: list[Batches] = [[] for _ in range(count + 1)]
    running = batches(corpus, 10**6)
    for batch in running:
        passes[running.position["pass"]].append(batch)
        if passes[count]:
            return passes[:count]
    raise AssertionError


@pytest.mark.parametrize("name", ["files", "hub"])
def test_each_pass_has_the_texts_of_all_shards_in_another_order(name: str, corpora: dict[str, Corpus]) -> None:
    stream = corpora[name].stream()
    assert stream is not None
    assert sorted(TextPass(stream, None).take(10**6)) == sorted(TEXTS)
    expected = sorted(text for text in TEXTS if not stream.is_held_out(text))
    passes = [texts_in(each) for each in of_passes(corpora[name], 3)]
    assert all(sorted(each) == expected for each in passes) and 70 < len(expected) < 90
    assert len({*map(tuple, passes)}) == 3 and passes[0][:20] != expected[:20]
    assert all(len(batch) * max(map(len, batch)) <= 64 for each in of_passes(corpora[name], 1) for batch in each)


def test_the_first_texts_stand_for_the_corpus(corpora: dict[str, Corpus], capsys: pytest.CaptureFixture[str]) -> None:
    splits, stream = corpora["files"].load(), corpora["files"].stream()
    assert stream is not None and {*splits} == {"train", "validation"}
    assert splits["train"]["text"][:] == [text for text in TEXTS[:60] if not stream.is_held_out(text)]
    assert splits["validation"]["text"][:] == [text for text in TEXTS[:60] if stream.is_held_out(text)]
    uses = "tokenizer, word vectors, lengths and held-out texts are taken from the first 60 texts"
    assert f"shards: streamed; {uses}, and samples are compared with these alone\n" in capsys.readouterr().err


def test_a_validation_file_leaves_all_texts_to_the_training(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("one\ntwo\n")
    corpus = Files(str(shards), validation=str(tmp_path / "v.txt"), streaming=True)
    splits, stream = corpus.load(), corpus.stream()
    assert stream is not None and splits["train"]["text"][:] == TEXTS and splits["validation"]["text"][:] == ["one", "two"]
    assert not any(map(stream.is_held_out, TEXTS))


@pytest.mark.parametrize("name", ["files", "hub"])
@pytest.mark.parametrize("world", [1, 2])
def test_a_position_continues_with_the_same_batches(name: str, world: int, corpora: dict[str, Corpus]) -> None:
    rank, number = world - 1, 60 // world
    running, found, positions = batches(corpora[name], number, rank, world), [], []
    for batch in running:
        found.append(batch)
        positions.append((json.dumps(running.position), running.figures()))
    assert len(found) == number
    first = batches(corpora[name], number, 0, world)
    saved = [json.dumps(first.position) for _ in first]  # by the first process, for all
    for start in (1, 2, 9, number // 2, number - 1):
        again = batches(corpora[name], number, rank, world)
        again.load(json.loads(saved[start - 1]), start)
        assert list(again) == found[start:]
        assert again.figures() == positions[-1][1]


@pytest.mark.parametrize("name", ["files", "hub"])
def test_a_run_that_stops_after_each_batch_continues_with_the_same_batches(name: str, corpora: dict[str, Corpus]) -> None:
    found: Batches = []
    position: dict[str, Any] = {}
    for start in range(24):
        running = batches(corpora[name], 24)
        if position:
            running.load(position, start)
        found.append(next(iter(running)))
        position = json.loads(json.dumps(running.position))
    assert found == list(batches(corpora[name], 24))


def test_the_ranks_have_disjoint_texts_which_are_all_together(corpora: dict[str, Corpus]) -> None:
    parts = [list(batches(corpora["files"], 12, rank, 3)) for rank in range(3)]
    stream = corpora["files"].stream()
    assert stream is not None
    counts = Counter(texts_in([batch for step in zip(*parts, strict=True) for batch in step]))
    trained = [text for text in TEXTS if not stream.is_held_out(text)]
    assert {*counts} == {*trained} and max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("settings", [{"too_long": "split", "context": 2}, {"packing": "wrap"}], ids=["pieces", "packed"])
def test_long_texts_are_split_and_short_ones_packed_as_elsewhere(settings: dict[str, Any], corpora: dict[str, Corpus]) -> None:
    stream = corpora["files"].stream()
    assert stream is not None
    data = DataConfig(max_length=9, **settings)
    found = StreamedBatches(stream, tokenizer(), data)
    found.set(400, 1, 0)
    text_pass = TextPass(stream, np.random.default_rng([0, 0, 2]))
    texts = text_pass.take(stream.buffer, lambda text: not stream.is_held_out(text))
    rows = encode(texts, tokenizer(), data.max_length, data.too_long, data.context, data.packing)
    assert sorted(row for batch in islice(found, 1) for row in batch) == sorted([*map(list, rows.ids)])


def test_texts_that_are_cut_or_unknown_are_counted(corpora: dict[str, Corpus]) -> None:
    stream = corpora["files"].stream()
    assert stream is not None
    found = StreamedBatches(stream, WordTokenizer().make(["a b c end"]), DataConfig(max_length=12, too_long="drop"))
    found.set(64, 1, 0)
    assert len(list(found)) == 1
    read = TextPass(stream, np.random.default_rng([0, 0, 2])).take(20, lambda text: not stream.is_held_out(text))
    long = sum(len(text.split()) > 10 for text in read)
    kept = [text.split() for text in read if len(text.split()) <= 10]
    assert found.figures() == {"texts": 20, "cut": long, "empty": 0, "unknown": len(kept) / sum(map(len, kept))}
    assert f"train: 20 texts were read, {long} of them longer than 12 tokens and dropped, 0 without" in found.summary()


def refusal(function: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        function()
    return str(caught.value)


def test_wrong_rows_are_refused_with_their_place(shards: Path, corpora: dict[str, Corpus], tmp_path: Path) -> None:
    with (shards / "b.jsonl").open("a") as file:
        file.write('{"text": "a\\u0001"}\n')
    sentence = f"{shards}/b.jsonl, line 31: U+0001, a control character, in 'a\\x01'"
    assert refusal(lambda: list(batches(corpora["files"], 100))) == sentence
    for number in (1, 2):
        (tmp_path / "hub" / f"train-{number}.jsonl").unlink()
    for row, sentence in {
        '{"t": {"en": "a"}}\n{"t": {"en": "a\\u0001"}}\n': "row 2: U+0001, a control character",
        '{"t": {"en": 5}}\n': "row 1: column 't.en' should hold text, got 5",
    }.items():
        (tmp_path / "hub" / "train-0.jsonl").write_text(row)
        assert f"hub, split train, {sentence}" in refusal(corpora["hub"].load)
    (tmp_path / "hub" / "train-0.jsonl").write_text('{"t": {"fr": "x"}}\n')
    assert "hub, split train: no column 't.en' among 't'" in refusal(corpora["hub"].load)
    (tmp_path / "hub" / "train-0.jsonl").write_text('{"t": {"en": "a"}}\n{"t": "b')
    assert "hub, split train: cannot be read after row" in refusal(corpora["hub"].load)
    (shards / "b.jsonl").write_text("{}\n")
    assert refusal(corpora["files"].load) == f"{shards}/b.jsonl: there is no text in it"


def test_a_pass_without_a_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three four\n" * 3)
    corpus = Files(str(tmp_path / "a.txt"), streaming=True, validation_share=0)
    stream = corpus.stream()
    assert stream is not None
    found = StreamedBatches(stream, tokenizer(), DataConfig(max_length=4, too_long="drop"))
    found.set(64, 9, 0)
    assert refusal(lambda: list(found)) == f"{tmp_path}/a.txt: of 3 texts none is left for training"
    found = StreamedBatches(stream, tokenizer(), DataConfig(max_length=4, too_long="error"))
    found.set(64, 9, 0)
    assert f"{tmp_path}/a.txt: of the last 3 of 3 texts, max_length: text 0 has 6 tokens" in refusal(lambda: list(found))


def test_rows_without_a_text_are_left_out_also_where_a_block_has_no_other(tmp_path: Path, shards: Path) -> None:
    rows = [{"text": f"t{i}"} for i in range(7)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"n": 1}, {"n": 2}])))
    plain, streamed = (Files(str(tmp_path / "a.jsonl"), streaming=on, validation_share=0) for on in (False, True))
    stream = streamed.stream()
    assert stream is not None
    assert TextPass(stream, None).take(10) == plain.load()["train"]["text"][:] == [row["text"] for row in rows]
    (shards / "z").write_text("no format")
    assert refusal(Files(str(shards / "*"), streaming=True).stream).startswith(f"{shards}/z: expected a file ending in one of")


def test_the_last_texts_of_a_pass_may_fill_no_packed_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b c end\n" * 21)
    found = packed(tmp_path, shuffle_buffer=5)
    rows = [row for batch in islice(found, 8) for row in batch]  # of two passes, each with a last buffer of one text
    assert len(rows) == 8 * 2 and found.position["pass"] == 1
    sentence = "a.txt: of 21 texts none is left for training: no 1 of them (shuffle_buffer) fill a packed row"
    assert sentence in refusal(lambda: list(packed(tmp_path, shuffle_buffer=1)))


def packed(folder: Path, **settings: Any) -> StreamedBatches:
    stream = Files(str(folder / "a.txt"), streaming=True, validation_share=0, **settings).stream()
    assert stream is not None
    found = StreamedBatches(stream, tokenizer(), DataConfig(max_length=12, packing="wrap"))
    found.set(64, 9, 0)
    return found


def test_other_files_do_not_continue_a_run(shards: Path, corpora: dict[str, Corpus]) -> None:
    running = batches(corpora["files"], 4)
    next(iter(running))
    with (shards / "b.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    again = batches(corpora["files"], 4)
    assert refusal(lambda: again.load(running.position, 1)).startswith(f"{shards}: its files differ from those that this run")


def test_settings_without_effect_are_refused() -> None:
    for plain, sentence in {
        "first_texts": (5, "it has no effect on a corpus that is not streamed; set streaming, or leave it out"),
        "shuffle_buffer": (5, "it has no effect on a corpus that is not streamed; set streaming, or leave it out"),
    }.items():
        value, reason = sentence
        for corpus in ({"name": "files", "train": "a.txt"}, {"name": "hub", "path": "x", "streaming": True, "take": 3}):
            assert refusal(lambda: build(DataConfig, {"corpus": {**corpus, plain: value}})) == f"corpus.{plain}: {reason}"  # noqa: B023
    kind = {"name": "files", "train": "a.txt", "streaming": True, "attributes": ["x"]}
    assert "only the texts are read" in refusal(lambda: build(DataConfig, {"corpus": kind}))


def test_reports_on_the_texts_are_made_in_the_first_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text('text\nt1 a\n""\nt2 b\n')
    corpus = Files(str(tmp_path / "a.csv"), streaming=True, validation_share=0)
    corpus.load()
    list(islice(batches(corpus, 20), 20))
    assert capsys.readouterr().err.count("a.csv, line 3: there is no text in 'text', and the row is left out\n") == 1


def test_reports_of_corpora_that_are_not_streamed_have_the_settings_of_earlier_versions() -> None:
    plain: dict[str, object] = {
        "train": "a.txt",
        "validation": None,
        "test": None,
        "text": "text",
        "attributes": [],
        "validation_share": 0.05,
    }
    assert plain_corpus(Files("a.txt")) == {"name": "files", **plain}
    assert plain_corpus(Files("a.txt", streaming=True, first_texts=5)) == {
        "name": "files", **plain, "streaming": True, "first_texts": 5,
    }  # fmt: skip
    assert plain_corpus(Hub("x"))["streaming"] is False and "first_texts" not in plain_corpus(Hub("x"))
