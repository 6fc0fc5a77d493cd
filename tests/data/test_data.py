"""Corpora read from real files, encoding, batches of a token budget."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from itertools import chain, islice
from pathlib import Path

import datasets  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch

from diffusionlm.config import UserError, build, to_plain
from diffusionlm.core.objective import collate
from diffusionlm.data.batches import DataConfig, TokenBudgetBatches, encode
from diffusionlm.data.corpora import E2E, Corpus, Files, Hub
from diffusionlm.data.tokenizers import WordTokenizer, decode_texts, split_words
from diffusionlm.restaurants.corpus import Restaurants, _content
from diffusionlm.restaurants.grammar import accepts

ROWS = [
    {"text": "Café Sicilia, cheap.", "attributes": {"food": "Italian"}, "n": 1, "tree": ["S", ["NP", "x"]]},
    {"text": "NA", "attributes": {"area": "riverside", "name": "NA"}, "n": 2, "tree": ["S"]},
    {"text": " ", "attributes": {}, "n": 3, "tree": []},
    {"text": 'A "quoted" pub', "attributes": {}, "n": 4, "tree": []},
]
TEXTS = ["Café Sicilia, cheap.", "NA", 'A "quoted" pub']


def _write(path: Path, text: str) -> str:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return str(path)


def _table() -> str:
    return 'id,text,food\n7,"Café Sicilia, cheap.",Italian\n8,NA,\n9,"A ""quoted"" pub",English\n10, ,x\n'


def _lines() -> str:
    return "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(scope="session")
def e2e() -> str:
    folder = Path(os.environ.get("DIFFUSIONLM_E2E", Path(__file__).parents[3] / "shared" / "data" / "e2e"))
    if not (folder / "trainset.csv").is_file():
        pytest.skip(f"the E2E files are not at {folder}; DIFFUSIONLM_E2E can name their folder")
    return str(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "\n".join(["", *TEXTS, " "])),
        ("b.jsonl", _lines()),
        ("c.json", "\ufeff" + _lines()),
        ("d.csv", _table()),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_files(tmp_path: Path, name: str, content: str, suffix: str) -> None:
    path = _write(tmp_path / (name + suffix), content)
    splits = Files(path, validation=path, test=path).load()
    assert list(splits) == ["train", "validation", "test"]
    assert all(split["text"][:] == TEXTS for split in splits.values())
    assert [child.name for child in tmp_path.iterdir()] == [name + suffix]


def test_other_columns_come_back_as_they_were(tmp_path: Path) -> None:
    train = Files(_write(tmp_path / "a.jsonl", _lines()), validation_share=0).load()["train"]
    assert [train[i] for i in range(3)] == [ROWS[0], ROWS[1], ROWS[3]]


def test_columns_as_attributes_and_another_text_column(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", _table().replace("id,text,food", "text,review,food"))
    train = Files(path, text="review", attributes=("food", "text"), validation_share=0).load()["train"]
    assert sorted(train.column_names) == ["attributes", "text"]
    assert train["text"][:] == TEXTS
    assert train["attributes"][:] == [{"food": "Italian", "text": "7"}, {"text": "8"}, {"food": "English", "text": "9"}]


def test_parquet(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"text": text, "n": i} for i, text in enumerate(TEXTS)]).to_parquet(tmp_path / "a.parquet")
    train = Files(str(tmp_path / "a.parquet"), validation_share=0).load()["train"]
    assert train[:] == {"text": TEXTS, "n": [0, 1, 2]}


def test_held_out_texts_stay_held_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    lines = [f"text number {i}" for i in range(2000)]
    before = Files(_write(path, "\n".join(lines)), validation_share=0.1).load()
    assert 150 < len(before["validation"]) < 250
    assert sorted(before["train"]["text"][:] + before["validation"]["text"][:]) == sorted(lines)
    after = Files(_write(path, "\n".join([*lines, *lines, "more"])), validation_share=0.1).load()
    assert set(before["validation"]["text"][:]) == set(after["validation"]["text"][:]) - {"more"}
    assert not set(after["validation"]["text"][:]) & set(after["train"]["text"][:])


def test_a_path_is_a_corpus(tmp_path: Path) -> None:
    path = _write(tmp_path / "mine.txt", "a\nb\n")
    bare = _write(tmp_path / "mine", "a\nb\n")
    assert build(DataConfig, {"corpus": path}).corpus == Files(path)
    assert build(DataConfig, {"corpus": {"name": path, "test": path}}).corpus == Files(path, test=path)
    assert build(DataConfig, {"corpus": bare}).corpus == Files(bare)
    assert build(DataConfig, {"corpus": "not_there.csv"}).corpus == Files("not_there.csv")
    assert build(DataConfig, {"corpus": "restaurants"}).corpus == Restaurants()
    config = DataConfig(Files(path, attributes=("a", "b")), WordTokenizer(2), 32, "split")
    assert build(DataConfig, to_plain(config)) == config


def _mistakes() -> list[tuple[str, Callable[[Path], Corpus], str]]:
    return [
        (
            "missing",
            lambda at: Files(str(at / "trian.txt")),
            "trian.txt: there is no such file; did you mean 'train.txt'",
        ),
        ("folder", lambda at: Files(str(at / "x" / "y.txt")), "y.txt: there is no such file, nor its folder .*x$"),
        ("suffix", lambda at: Files(_write(at / "a.doc", "x")), r"a.doc: expected a file ending in one of .txt, "),
        (
            "column",
            lambda at: Files(_write(at / "a.csv", "txt,b\nx,y\n")),
            "a.csv: no column 'text' among 'txt', 'b'; did",
        ),
        (
            "attribute",
            lambda at: Files(_write(at / "a.csv", "text\nx\n"), attributes=("food",)),
            "no column 'food' among",
        ),
        (
            "no header",
            lambda at: Files(_write(at / "a.csv", "Hi there.\nYes.\n")),
            "no column 'text' among 'Hi there.'",
        ),
        (
            "ragged",
            lambda at: Files(_write(at / "a.csv", "text,b\nx,y\nz\n")),
            r"a.csv, line 3: expected 2 columns \(text, b",
        ),
        ("quotes", lambda at: Files(_write(at / "a.csv", 'text\n"x\n')), "a.csv, line 2: not valid CSV: "),
        ("empty table", lambda at: Files(_write(at / "a.csv", "")), "a.csv: there is no text in it"),
        ("empty lines", lambda at: Files(_write(at / "a.txt", "\n \n")), "a.txt: there is no text in it"),
        (
            "json",
            lambda at: Files(_write(at / "a.jsonl", '{"text": "x"}\n{"text"\n')),
            "a.jsonl, line 2: expected a JSON obj",
        ),
        (
            "json list",
            lambda at: Files(_write(at / "a.json", '[\n{"text": "x"}\n]')),
            "a.json, line 1: expected a JSON object",
        ),
        (
            "json value",
            lambda at: Files(_write(at / "a.json", "3\n")),
            "a.json, line 1: expected a JSON object on .*, got 3",
        ),
        (
            "surrogate",
            lambda at: Files(_write(at / "a.json", '{"text": "x \\ud800"}')),
            "a.json, line 1: U.D800, half a surrogate pair",
        ),
        ("number", lambda at: Files(_write(at / "a.jsonl", '{"text": 0}\n')), "column 'text' should hold text, got 0"),
        (
            "all held out",
            lambda at: Files(_write(at / "a.txt", "b"), validation_share=0.999),
            "all of its texts fell to",
        ),
        (
            "meaning",
            lambda at: E2E(_e2e_folder(at, "name[A, area[b]")),
            "trainset.csv, line 3: expected 'key.value., .*'name",
        ),
        (
            "no column mr",
            lambda at: E2E(_e2e_folder(at, "a[b]", "m")),
            "trainset.csv: no column 'mr' among 'm', 'ref'",
        ),
        ("hub", lambda at: Hub(str(at / "nothing")), "nothing: cannot load a dataset from here: "),
        (
            "hub split",
            lambda at: Hub(_hub_folder(at), train="trian"),
            "hub: no split is called 'trian'; did you mean 'train'",
        ),
        (
            "hub column",
            lambda at: Hub(_hub_folder(at), text="tekst"),
            "split train: no column 'tekst' .*did you mean 'text'",
        ),
        ("hub config", lambda at: Hub(_hub_folder(at), config="x"), "cannot load .*'x' not found. Available"),
    ]


@pytest.mark.parametrize(("make", "message"), [m[1:] for m in _mistakes()], ids=[m[0] for m in _mistakes()])
def test_mistakes(tmp_path: Path, make: Callable[[Path], Corpus], message: str, cache: None) -> None:
    _write(tmp_path / "train.txt", "x")
    with pytest.raises(UserError, match=message) as caught:
        make(tmp_path).load()
    assert "\n" not in str(caught.value)


def test_damaged_and_foreign_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("é".encode("latin-1") * 3)
    with pytest.raises(UserError, match="a.txt, line 1: expected UTF-8 text, got the byte 0xe9; if 'ééé' is right, convert it"):
        Files(str(tmp_path / "a.txt")).load()
    for content in (b"no gzip", gzip.compress(b"many words" * 100)[:-12]):
        (tmp_path / "a.txt.gz").write_bytes(content)
        with pytest.raises(UserError, match="a.txt.gz: the file is damaged: "):
            Files(str(tmp_path / "a.txt.gz")).load()
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="a.parquet: the file is damaged: "):
        Files(str(tmp_path / "a.parquet")).load()


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"corpus": "restaurant"}, "^data.corpus: no corpus is called 'restaurant'; did you mean 'restaurants'"),
        ({"corpus": {"name": "files"}}, "^data.corpus.train: this setting is needed"),
        (
            {"corpus": {"name": "files", "train": "a.txt", "validation_share": 1}},
            "^data.corpus.validation_share: expected",
        ),
        ({"corpus": {"name": "hub", "path": "x", "take": 0}}, "^data.corpus.take: expected 1 or more, got 0"),
        ({"max_length": 2}, "^data.max_length: expected 3 or more"),
        ({"too_long": "cut"}, "^data.too_long: expected 'truncate', 'split', 'drop' or 'error', got 'cut'"),
    ],
)
def test_mistakes_in_settings(plain: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(DataConfig, plain, "data")


def _e2e_folder(at: Path, meaning: str, column: str = "mr") -> str:
    for name in ("trainset", "devset", "testset_w_refs"):
        _write(at / f"{name}.csv", f'{column},ref\n"name[A, B], area[x y]",A is here.\n"{meaning}",B.\n')
    return str(at)


def test_meaning_representations(tmp_path: Path) -> None:
    train = E2E(_e2e_folder(tmp_path, " eatType[ pub ],food[]")).load()["train"]
    assert train[:]["attributes"] == [{"name": "A, B", "area": "x y"}, {"eatType": "pub", "food": ""}]


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def _hub_folder(at: Path, rows: int = 40) -> str:
    (at / "hub").mkdir(exist_ok=True)
    for split in ("train", "test"):
        lines = [json.dumps({"text": f"{split} {i}", "label": i % 2}) + "\n" for i in range(rows)]
        _write(at / "hub" / f"{split}.jsonl", "".join(lines))
    return str(at / "hub")


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("streaming", [False, True])
def test_hub(tmp_path: Path, streaming: bool) -> None:
    corpus = Hub(_hub_folder(tmp_path), streaming=streaming, take=30, attributes=("label",), validation_share=0.2)
    splits = corpus.load()
    assert set(splits) == {"train", "validation", "test"}
    assert splits["test"][29] == {"text": "test 29", "attributes": {"label": "1"}}
    assert len(splits["test"]) == len(splits["train"]) + len(splits["validation"]) == 30


@pytest.mark.usefixtures("cache")
def test_hub_folder_that_changes(tmp_path: Path) -> None:
    assert len(Hub(_hub_folder(tmp_path), validation="test").load()["train"]) == 40
    assert len(Hub(_hub_folder(tmp_path, 50), validation="test").load()["train"]) == 50


def test_restaurants() -> None:
    folder = Path(__file__).parents[2] / "data" / "restaurants"
    if not folder.is_dir():
        pytest.skip(f"the restaurants corpus has not been written to {folder}")
    splits = Restaurants().load()
    assert set(splits) == {"train", "validation", "test"}
    splits["test"].set_format("numpy")
    assert Restaurants().load()["test"].format["type"] is None, "a caller's data set is its own"
    rows = splits["validation"]
    assert {"text", "words", "attributes", "tags", "tree"} <= set(rows.column_names)
    tokenizer = WordTokenizer().make(splits["train"]["text"][:])
    for row in rows.select(range(min(1000, len(rows)))):
        assert split_words(row["text"]) == row["words"]
        assert len(row["words"]) == len(row["tags"]) == len(tokenizer(row["text"])["input_ids"]) - 2
    texts = rows["text"][:]
    assert decode_texts(tokenizer, encode(texts, tokenizer, 512).ids) == texts


def test_restaurants_drawn_anew() -> None:
    kept, drawn = Restaurants().load(), Restaurants(drawn=3000).load()
    for split in ("validation", "test"):
        assert drawn[split]["text"][:] == kept[split]["text"][:]
    rows = drawn["train"]
    assert len(rows) == 3000 and rows.features == kept["train"].features
    assert all(accepts(text) for text in rows["text"][:300])
    assert Restaurants(drawn=20).load()["train"][:] == rows[:20]
    assert Restaurants(drawn=20, seed=1).load()["train"]["text"][:] != rows["text"][:20]
    # Of 3,000 texts that were not chosen some hundred would say just what a test text says.
    told = {_content(row) for row in kept["test"]["attributes"]}
    assert not any(_content(row) in told for row in rows["attributes"])
    assert not {*rows["text"]} & {*kept["validation"]["text"]}
    with pytest.raises(UserError, match="drawn: expected 0"):
        Restaurants(drawn=-1)


def test_e2e(e2e: str) -> None:
    splits = E2E(e2e).load()
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [42061, 4672, 4693]
    assert splits["train"][0]["attributes"]["near"] == "Café Adriatic"
    texts = splits["validation"]["text"][:]
    tokenizer = WordTokenizer().make(texts)
    encoded = encode(texts, tokenizer, 128, "error")
    assert decode_texts(tokenizer, encoded.ids) == [" ".join(text.split()) for text in texts]


def test_encode() -> None:
    tokenizer = WordTokenizer().make(["a b c d e f g"])
    texts = ["a b", "", "a b c d e f g", " ", "a b c"]

    def decoded(rows: Sequence[list[int]]) -> list[str]:
        return decode_texts(tokenizer, rows)

    cut = encode(texts, tokenizer, 5, "truncate")
    assert decoded(cut.ids) == ["a b", "a b c", "a b c"]
    assert (cut.texts, cut.too_long, cut.empty, list(map(len, cut.ids))) == ([0, 2, 4], 1, 2, [4, 5, 5])
    split = encode(texts, tokenizer, 5, "split")
    assert decoded(split.ids) == ["a b", "a b c", "d e f", "g", "a b c"]
    assert (split.texts, split.too_long) == ([0, 2, 2, 2, 4], 1)
    dropped = encode(texts, tokenizer, 5, "drop")
    assert (decoded(dropped.ids), dropped.texts, dropped.too_long) == (["a b", "a b c"], [0, 4], 1)
    for row in chain(cut.ids, split.ids, dropped.ids):
        assert (row[0], row[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    with pytest.raises(UserError, match="^max_length: text 2 has 9 tokens with BOS and EOS, more than the 5 allowed"):
        encode(texts, tokenizer, 5, "error")
    with pytest.raises(UserError, match="^texts: of 2 none is left: 1 empty, 1 over 5 tokens"):
        encode(texts[1:3], tokenizer, 5, "drop")
    with pytest.raises(UserError, match="^texts: of 0 none is left"):
        encode([], tokenizer)


@pytest.mark.parametrize("world", [1, 3])
def test_batches_pass_by_pass(world: int) -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 5000)
    ranks = [list(TokenBudgetBatches(lengths, 512, 400, 7, rank, world)) for rank in range(world)]
    steps = list(zip(*ranks, strict=True))
    assert len(steps) == 400
    assert all(len(rows) * lengths[rows].max() <= 512 for rows in chain(*steps))
    passes, seen = 0, np.zeros(len(lengths), dtype=int)
    for step in steps:
        taken = list(chain(*step))
        assert len(taken) == len(set(taken))
        seen[taken] += 1
        assert seen.max() - seen.min() <= 1  # No row comes again before all others came.
        passes += bool(seen.min() == seen.max())
    assert passes >= 1
    real = sum(lengths[rows].sum() for rows in chain(*steps))
    assert real > 0.9 * sum(len(rows) * lengths[rows].max() for rows in chain(*steps))


def test_batches_are_a_pure_function_of_their_place() -> None:
    lengths = [3, 9, 4, 8, 5, 7, 6] * 30
    batches = TokenBudgetBatches(lengths, 40, 500, seed=1)
    whole = list(batches)
    assert len(batches) == len(whole) == 500
    assert list(batches) == whole
    assert list(islice(TokenBudgetBatches(lengths, 40, 10**9, seed=1), 500)) == whole
    assert list(TokenBudgetBatches(lengths, 40, 500, seed=2)) != whole
    first = list(chain(*whole[: len(whole) // 10]))
    assert first != sorted(first)


@pytest.mark.parametrize(
    ("count", "tokens", "world", "seed", "digest"),
    [  # of the batches of all ranks, as the first version made them with a loop over the rows
        (7, 80, 1, 1, "db7b354f7f5cb833"), (5000, 512, 3, 7, "b8fbc6477ef3e26d"), (5000, 512, 1, 7, "3a8d625439e728d7"),
        (3000, 64, 4, 2, "8d45242f9c1e4c88"), (40, 100_000, 3, 0, "cfe1bc58cf9a2f32"), (20_000, 768, 2, 5, "3831715be2b004ee"),
    ],
)  # fmt: skip
def test_the_order_of_batches_stays(count: int, tokens: int, world: int, seed: int, digest: str) -> None:
    lengths = np.random.default_rng(count).integers(3, 64, count)
    found = hashlib.sha256()
    for rank in range(world):
        for batch in TokenBudgetBatches(lengths, tokens, 700, seed, rank, world):
            found.update(json.dumps(batch).encode())
    assert found.hexdigest()[:16] == digest


def test_few_rows_for_many_ranks() -> None:
    ranks = [list(TokenBudgetBatches([3, 4, 5], 5, 20, 0, rank, 2)) for rank in range(2)]
    assert all(len(batch) == 1 for rank in ranks for batch in rank)
    stream = [batch[0] for step in zip(*ranks, strict=True) for batch in step]
    assert all(sorted(stream[i : i + 3]) == [0, 1, 2] for i in range(0, 39, 3))


def test_mistakes_in_batches() -> None:
    with pytest.raises(UserError, match="^training.batch_tokens: a batch may hold 16, but text 1 alone has 20"):
        TokenBudgetBatches([3, 20, 4], 16, 1, 0)
    with pytest.raises(UserError, match="^data: there is no text"):
        TokenBudgetBatches([], 16, 1, 0)


def test_a_million_rows() -> None:
    lengths = np.random.default_rng(0).integers(5, 65, 1_000_000)
    batch = next(iter(TokenBudgetBatches(lengths, 4096, 10**9, 0)))
    assert len(batch) * lengths[batch].max() <= 4096


def test_collate() -> None:
    rows = [[2, 5, 3], [2, 5, 0, 7, 3]]
    batch = collate(rows, pad_id=0)
    assert batch["ids"].dtype == torch.int64 and batch["mask"].dtype == torch.bool
    assert batch["ids"].tolist() == [[2, 5, 3, 0, 0], [2, 5, 0, 7, 3]]
    assert batch["mask"].tolist() == [[True, True, True, False, False], [True] * 5]
    assert collate(rows, 0, width=8)["ids"].shape == collate(rows, 0, width=8)["mask"].shape == (2, 8)
    with pytest.raises(UserError, match="^width: expected 5 or more, the longest row, got 4"):
        collate(rows, 0, width=4)


def test_a_loader_takes_the_batches() -> None:
    tokenizer = WordTokenizer().make(["a b c", "a", "b c"])
    encoded = encode(["a b c", "a", "b c"], tokenizer)
    loader: torch.utils.data.DataLoader[dict[str, torch.Tensor]] = torch.utils.data.DataLoader(
        encoded.ids,  # type: ignore[arg-type]
        batch_sampler=TokenBudgetBatches(list(map(len, encoded.ids)), 10, 5, 0),
        collate_fn=lambda rows: collate(rows, tokenizer.pad_token_id),
    )
    batches = list(loader)
    assert len(batches) == 5 and all(batch["ids"].numel() <= 10 for batch in batches)
