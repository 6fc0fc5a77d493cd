"""Large corpora are read in blocks, encoded word by word and cached: the texts, rows and refusals are those of small ones."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets  # type: ignore[import-untyped]
import numpy as np
import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
import torch

from diffusionlm.config import UserError
from diffusionlm.data import blocks, lines, rows, store
from diffusionlm.data.batches import Packing, TooLong, encode
from diffusionlm.data.copies import KnownRows, KnownTexts
from diffusionlm.data.corpora import Files, Hub
from diffusionlm.data.encoding import encode_large
from diffusionlm.data.rows import Texts, TokenRows, digest_of, lengths_of, texts_of, token_counts
from diffusionlm.data.tokenizers import BytePairs, TokenizerRecipe, WordTokenizer, decode_texts, splits_at_blanks
from diffusionlm.recipe.word_init import cooccurrence, word_vectors_from

TEXTS = [
    "It's a pub.", "a  b\u00a0c", "e\u0301t\u00e9 \u0301x don't", "[END] [UNK] ▁x", "5-star, 1,000.50 £20-25.", "one " * 30,
    "日本 語", "  spaced\tout  ", "x", *(f"text number {i} of many" for i in range(60)),
]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFUSIONLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rows, "BLOCK", 7)
    monkeypatch.setattr(lines, "BLOCK", 50)
    monkeypatch.setattr(blocks, "ROWS", 3)
    monkeypatch.setattr(blocks, "CHARACTERS", 60)
    return tmp_path / "cache"


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], tuple[object, object]]:
    """Return what a function returns or refuses with all corpora small, and with all corpora large."""

    def called(function: Callable[[], object]) -> tuple[object, object]:
        found = []
        for size in (2**40, 1):
            monkeypatch.setattr(store, "LARGE", size)
            try:
                found.append(function())
            except UserError as error:
                found.append(str(error))
        return found[0], found[1]

    return called


Both = Callable[[Callable[[], object]], tuple[object, object]]


def contents(splits: dict[str, datasets.Dataset]) -> dict[str, object]:
    return {split: (str(found.features), str(found[:])) for split, found in splits.items()}  # NaN is equal to itself as text


def write(path: Path, content: bytes) -> str:
    suffix = path.suffix.lower()
    packed = {".gz": gzip.compress, ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)}
    path.write_bytes(packed.get(suffix, bytes)(content))
    return str(path)


LINES = "\n".join(TEXTS).encode()
OBJECTS = "\n".join(json.dumps({"text": text, "n": i}) for i, text in enumerate(TEXTS)).encode()
TABLE = "\n".join(["text\tn", *(f'"{text}"\t{i}' for i, text in enumerate(TEXTS))]).encode()
FORMATS = {
    "a.txt": LINES, "A.TXT": LINES, "a.txt.gz": LINES, "a.txt.zst": LINES, "a.jsonl": OBJECTS, "a.jsonl.zst": OBJECTS,
    "A.JSONL.GZ": OBJECTS, "a.tsv": TABLE, "a.TSV.ZST": TABLE, "b.txt": LINES.replace(b"\n", b"\r\n"),
    "c.txt": LINES.replace(b"\n", b"\r"), "d.txt": LINES.decode().encode("utf-16"), "e.txt": b"\xef\xbb\xbf" + LINES + b"\n\n",
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_large_file_gives_the_splits_of_a_small_one(name: str, tmp_path: Path, both: Both, cache: Path) -> None:
    path = write(tmp_path / name, FORMATS[name])
    small, large = both(lambda: contents(Files(path, validation_share=0.2).load()))
    assert small == large and {*small} == {"train", "validation"}  # type: ignore[misc]
    assert large == contents(Files(path, validation_share=0.2).load())  # from the cache
    assert len([*cache.glob("texts-*/complete.json")]) == 1


def test_large_parquet_files_keep_all_columns(tmp_path: Path, both: Both) -> None:
    columns = {"text": TEXTS, "n": [*range(len(TEXTS))], "attributes": [{"a": str(i)} for i in range(len(TEXTS))]}
    none = pyarrow.array([None] * len(TEXTS), pyarrow.int64())
    lists = [[f"{i}"] * (i % 3) for i in range(len(TEXTS))]
    table = pyarrow.table({**columns, "none": none, "lists": lists, "raw": [b"\xff"] * len(TEXTS)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    small, large = both(lambda: contents(Files(str(tmp_path / "a.parquet"), attributes=("n",)).load()))
    assert small == large


@pytest.mark.parametrize("attributes", [(), ("n",), ("body",)])
def test_a_large_data_set_of_the_hub_is_that_of_a_small_one(
    attributes: tuple[str, ...], tmp_path: Path, both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "hub").mkdir()
    columns = {"body": [*TEXTS, None, " ", "x\ufffd"], "n": [*range(len(TEXTS) + 3)]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "hub" / "train.parquet")
    corpus = Hub(str(tmp_path / "hub"), text="body", attributes=attributes, validation_share=0.2)
    small, large = both(lambda: contents(corpus.load()))
    assert small == large and {*small} == {"train", "validation"}  # type: ignore[misc]


def objects(*rows: Mapping[str, object] | str) -> bytes:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()


FINE: list[dict[str, object]] = [{"text": f"number {i}", "kind": f"k{i % 3}"} for i in range(20)]
ODD = {
    "missing.jsonl": objects({}, {"kind": "x"}, *FINE, "", {"text": None}, {"text": " \t"}, {"text": "last", "late": 1}),
    "types.jsonl": objects(*FINE, {"text": "a", "kind": 7}, {"text": "b", "kind": float("nan")}, {"text": "c", "kind": "007"}),
    "nan.jsonl": objects({"text": "a", "kind": float("inf")}, {"text": "b", "kind": float("nan")}, *FINE),
    "lists.jsonl": objects(*({"text": f"t{i}", "kind": f"{i}", "l": ["a", "b"][: i % 3], "m": [i]} for i in range(9))),
    "late.jsonl": objects(*FINE, {"text": "a", "l": ["x"]}, {"text": "b", "attributes": {"e": "f"}}),
    "forms.jsonl": objects({"te\u0301xt": "no", "text": "a"}, {"text": "e\u0301", "kind": "e\u0301"}, *FINE),
    "quotes.csv": b'text,kind\r\n' + b'"two\nlines, ""quoted""\r\n\r\nfour",a\n\n\n,b\n"plain",""\n' * 9,
    "wide.csv": b"\n\nn;text;kind\n" + b"1;a b;\n;;c\n3;a\rb\n;c;d\n".replace(b"a\rb\n", b"e;f\n") * 8,
    "marks.tsv": "\ufefftext\tkind\n\u2028 a\tb\n\x93c\td\ne\tf".encode(),
    "old.csv": b"text,kind\ra,b\rc,d\r" * 1 + b"".join(b"%d,e\r" % i for i in range(30)),
    "utf-16.csv": ("text,kind\n" + "a,b\n" * 20).encode("utf-16"), "packed.csv.gz": b"text,kind\n" + b"a,b\nc,\n" * 20,
    "no kind.jsonl": objects({"text": "a"}, {"text": "b"}), "none.jsonl": b"{}\n\n{}", "header.csv": b"text,kind\n\n",
    "no text.csv": b"texts,kind\n" + b"a,b\n" * 9, "empty.csv": b"text,kind\n" + b",b\n" * 9,
    "broken.jsonl": objects(*FINE, '{"text": "a"', *FINE), "array.json": b'[{"text": "a"}]', "twice.jsonl": objects(*FINE, '{"a": 1, "a": 2}'),
    "number.jsonl": objects(*FINE, {"text": 5}), "control.jsonl": objects({"text": "a", "kind": []}, *FINE, {"text": "a\x01"}),
    "value.jsonl": objects({"kind": ["x"]}, *FINE, {"text": "a", "kind": {"x": 1}}), "half.jsonl": objects(*FINE, {"text": "a", "b": "\ud800"}),
    "columns.csv": b"text,kind\n" + b"a,b\n" * 20 + b"a,b,c\n", "open.csv": b"text,kind\n" + b"a,b\n" * 20 + b'c,"d\n' + b"e,f\n" * 9,
    "after.csv": b"text,kind\n" + b"a,b\n" * 20 + b'"c"d,e\n', "long.csv": b"text,kind\n" + b"a,b\n" * 20 + b'x,"' + b"l\n" * 120 + b'",e\n',
    "huge.csv": b"text,kind\n" + b"a,b\n" * 5 + b'x,"' + b"l" * 140_000 + b'",e\n', "names.csv": b"text,kind,text\na,b,c\n",
    "latin.csv": b"text,kind\n" + b"a,b\n" * 40 + b"\xe9,b\n", "cut.parquet": b"PAR1PAR1", "cut.jsonl.gz": b"\x1f\x8b\x08\x00",
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_rows_in_blocks_are_those_of_a_table(
    name: str, tmp_path: Path, both: Both, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(gzip.compress(ODD[name]) if name == "packed.csv.gz" else ODD[name])
    corpus, said = Files(str(tmp_path / name), attributes=("kind",), validation_share=0.1), []

    def load() -> object:
        try:
            return contents(corpus.load())
        finally:
            said.append([line for line in capsys.readouterr().err.splitlines() if line.startswith(str(tmp_path))])

    small, large = both(load)
    assert large == small
    assert isinstance(small, str) or said[0] == said[1]


def test_blocks_of_several_files_have_the_types_of_all(tmp_path: Path, both: Both) -> None:
    (tmp_path / "a.jsonl").write_bytes(objects(*FINE, {"text": "a", "n": 1}))
    (tmp_path / "b.csv").write_text("kind,text,n\nx,one,2\ny,,3\n")
    corpus = Files(f"{tmp_path}/?.*", attributes=("kind",))
    small, large = both(lambda: contents(corpus.load()))
    assert large == small and "Json" in str(small)
    (tmp_path / "c.txt").write_text("a text\n")
    small, large = both(lambda: corpus.load() and None)
    assert large == small and "only" in str(small)


REFUSED = {
    "latin-1": "Café\nfine\n".encode("latin-1") * 9, "late": b"fine\n" * 40 + b"\xe9\n", "nul": b"fine\n" * 40 + b"a\0b\n",
    "control": b"fine\n" * 40 + b"a\x01b\n", "nothing": b"\n \n", "empty": b"", "table": b"text,label\na,b\n",
    "objects": b'{"text": "a"}\n', "pdf": b"%PDF-1.4\n", "utf-16": "fine\n".encode("utf-16")[:-1],
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_large_file_is_refused_like_a_small_one(kind: str, tmp_path: Path, both: Both, cache: Path) -> None:
    path = write(tmp_path / "a.txt", REFUSED[kind])
    small, large = both(lambda: Files(path).load() and None)
    if kind != "empty":  # no bytes are never a large file
        assert large == small
    assert str(small).startswith(f"{path}") and not [*cache.glob("texts-*/")]


def test_lines_that_look_like_formats_are_texts_but_for_the_first(tmp_path: Path, both: Both) -> None:
    path = write(tmp_path / "a.txt", b"fine and long enough for a block of its own, really.\n<html>\n%PDF\nPK\x09\n" * 3)
    small, large = both(lambda: contents(Files(path, validation_share=0).load()))
    assert small == large and "<html>" in str(large)


def test_reports_on_the_texts_are_repeated(tmp_path: Path, both: Both, capsys: pytest.CaptureFixture[str]) -> None:
    content = "fine\n" * 20 + "a\u2028b\n" + "c\x0bd\n" + "lost \ufffd\nsmart \x93\n"
    path = write(tmp_path / "a.txt", content.encode())
    both(Files(path).load)
    Files(path).load()
    reports = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith(path)]
    assert len(reports) == 6 and reports[:2] == reports[2:4] == reports[4:]
    assert reports[0] == f"{path}, line 21: U+2028 is white space here and ends no line, and so are 1 more"
    assert "line 23: U+0093, U+FFFD, a sign of a wrong encoding" in reports[1]


def test_another_file_or_setting_is_another_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LARGE", 1)
    path = write(tmp_path / "a.txt", b"one\ntwo\n")
    assert Files(path, validation_share=0).load()["train"]["text"][:] == ["one", "two"]
    before = os.stat(path)
    write(tmp_path / "a.txt", b"one\nsix\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # of the same size and time
    assert Files(path, validation_share=0).load()["train"]["text"][:] == ["one", "six"]
    with pytest.raises(UserError, match="all of its texts fell to validation"):
        Files(path, validation_share=0.9999).load()


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Texts:
    monkeypatch.setattr(store, "LARGE", 1)
    found = texts_of(Files(write(tmp_path / "a.txt", LINES), validation_share=0).load()["train"])
    assert isinstance(found, Texts) and list(found) == [text.strip() for text in TEXTS] and found[1:3] == list(found)[1:3]
    return found


@pytest.mark.parametrize("recipe", [WordTokenizer(), WordTokenizer(2), BytePairs(60)], ids=str)
def test_a_tokenizer_of_many_texts_is_that_of_few(recipe: TokenizerRecipe, texts: Texts) -> None:
    few, many = recipe.make(list(texts), 9), recipe.make(texts, 9)
    assert many.backend_tokenizer.to_str() == few.backend_tokenizer.to_str() and splits_at_blanks(many)
    assert recipe.make(texts, 9).backend_tokenizer.to_str() == few.backend_tokenizer.to_str()  # from the cache


@pytest.mark.parametrize(
    ("too_long", "context", "packing"),
    [
        *((name, 0, "none") for name in ("truncate", "split", "drop")),
        ("split", 3, "none"),
        ("split", 9, "none"),
        ("truncate", 0, "wrap"),
    ],
)
@pytest.mark.parametrize("recipe", [WordTokenizer(2), BytePairs(60)], ids=str)
def test_rows_of_a_large_corpus_are_those_of_a_small_one(
    recipe: TokenizerRecipe, too_long: TooLong, context: int, packing: Packing, texts: Texts
) -> None:
    tokenizer = recipe.make(list(texts))
    small = encode(list(texts), tokenizer, 12, too_long, context, packing)
    large = encode_large(texts, tokenizer, 12, too_long, context=context, packing=packing)
    known = [getattr(row, "known", None) for row in small.ids]
    assert [getattr(row, "known", None) for row in large.ids] == known and any(known) == bool(context)
    assert isinstance(large.ids, TokenRows) and list(large.ids) == list(small.ids) and list(large.texts) == list(small.texts)
    assert (large.too_long, large.empty) == (small.too_long, small.empty)
    assert [large.ids[i] for i in range(-3, 3)] == [small.ids[i] for i in range(-3, 3)] and large.ids[2:5] == small.ids[2:5]
    assert digest_of(large.ids) == digest_of(small.ids) and lengths_of(large.ids).tolist() == [*map(len, small.ids)]
    assert [*token_counts(large.ids).items()] == [*token_counts(small.ids).items()]
    size = len(tokenizer)
    assert torch.equal(cooccurrence(large.ids, size), cooccurrence(small.ids, size))
    for _ in range(2):  # the second time from the cache
        vectors = []
        for ids in (small.ids, large.ids):
            torch.manual_seed(0)
            vectors.append(word_vectors_from(ids, size, 4, 0.8))
        assert torch.equal(*vectors)


def test_a_tokenizer_that_reads_across_blanks_encodes_whole_texts(texts: Texts) -> None:
    tokenizer = WordTokenizer().make(list(texts))
    tokenizer.backend_tokenizer.pre_tokenizer = None  # whole texts are words
    tokenizer.add_tokens(["text number"])
    assert not splits_at_blanks(tokenizer)
    assert list(encode_large(texts, tokenizer, 12, "truncate").ids) == list(encode(list(texts), tokenizer, 12).ids)


def test_texts_above_the_length_are_refused_alike(texts: Texts) -> None:
    tokenizer = WordTokenizer().make(list(texts))
    with pytest.raises(UserError) as small:
        encode(list(texts), tokenizer, 12, "error")
    with pytest.raises(UserError) as large:
        encode_large(texts, tokenizer, 12, "error")
    assert str(large.value) == str(small.value) and "text 5 has 32 tokens" in str(small.value)
    with pytest.raises(UserError, match="none is left: 0 empty, 69 over 3 tokens|none is left"):
        encode_large(Texts(texts.rows.select([5, 5])), tokenizer, 12, "drop")


def test_a_damaged_row_file_is_encoded_again(texts: Texts, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = WordTokenizer().make(list(texts))
    expected = list(encode_large(texts, tokenizer, 12, "truncate").ids)
    (path,) = cache.glob("rows-*/ids.arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert list(encode_large(texts, tokenizer, 12, "truncate").ids) == expected
    assert "this entry of the cache is damaged, and is made again" in capsys.readouterr().err


def test_copies_of_training_rows_are_found_by_their_tokens(texts: Texts) -> None:
    tokenizer = BytePairs(60).make([*texts, "new"])
    found = encode_large(texts, tokenizer, 64, "drop").ids
    assert isinstance(found, TokenRows)
    known, words = KnownRows(found, tokenizer), KnownTexts(decode_texts(tokenizer, found))
    samples = [TEXTS[0], TEXTS[12], "text number 3 of number", "many of text"]
    assert known.copied(samples) == words.copied(samples) == 0.5
    assert known.repeated == words.repeated == 0
    again = encode_large(Texts(datasets.Dataset.from_dict({"text": ["a", "b", "a", "c"]})), tokenizer, 64, "drop").ids
    assert isinstance(again, TokenRows) and KnownRows(again, tokenizer).repeated == 0.5


def test_hashes_depend_on_the_order() -> None:
    from diffusionlm.data.copies import _hashes

    ids = np.array([2, 5, 6, 3, 2, 6, 5, 3, 2, 5, 3, 2, 5, 6, 3], np.int32)
    found = _hashes(ids, np.array([4, 4, 3, 4])).tolist()
    assert found[0] == found[3] and len({*found}) == 3
