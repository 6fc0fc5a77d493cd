"""Text that is not what it seems: one reader for all text that enters, and nothing of it scored or trained on by mistake."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import datasets  # type: ignore[import-untyped]
import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
from tiny_runs import ROOT

from diffusionlm.cli import main
from diffusionlm.config import UserError
from diffusionlm.controls import Attribute, Words, read_control, target_rows
from diffusionlm.data.corpora import Files, read_file, read_texts
from diffusionlm.data.labels import Field, TextLabels, fields_of
from diffusionlm.data.reading import read_table
from diffusionlm.evaluation.control.tasks import read_tasks
from diffusionlm.training.run import read_config

TEXT = "The pub is cheap.\nCafé Noir.\n"
NFC, NFD = unicodedata.normalize("NFC", "Café"), unicodedata.normalize("NFD", "Café")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    """Return a function that writes a file and returns its path."""

    def written(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return str(path)

    return written


Write = Callable[[str, str | bytes], str]


def texts_of(path: str, column: str = "text") -> list[str]:
    """Return the texts of a file, which the two readers of texts agree on."""
    texts = [text for _, text in read_texts(path, column)]
    assert read_file(path, column)["text"][:] == texts
    return texts


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_in_utf_8_or_with_a_byte_order_mark_is_read_as_the_same_text(encoding: str, write: Write) -> None:
    assert texts_of(write("a.txt", TEXT.encode(encoding))) == TEXT.splitlines()


def test_the_marks_of_files_that_were_joined_are_no_part_of_the_texts(write: Write) -> None:
    assert texts_of(write("a.txt", TEXT.encode("utf-8-sig") * 2)) == TEXT.splitlines() * 2
    assert texts_of(write("a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n')) == ["a", "b"]


def test_a_marked_text_is_scored_as_the_same_text_without_the_mark(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = []
    for mark in (b"", codecs.BOM_UTF8):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(mark + b"The pub is cheap.\n")))
        assert main(["score", str(ROOT / "tests" / "golden" / "format-1"), "-", "--strata", "2"]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (TEXT.encode("utf-16-le"), "line 1: NUL, .* probably UTF-16LE without a byte order mark; .* iconv -f UTF-16LE"),
        (TEXT.encode("utf-16-be"), "line 1: NUL, .* probably UTF-16BE without"),
        ("日本 語 の\nテキ スト\n".encode("utf-16-be"), "line 1: NUL, .* probably UTF-16BE without"),
        (TEXT.encode("utf-32-le"), "line 1: NUL, .* probably UTF-32LE without"),
        (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le")[:-1], "its byte order mark says UTF-16, but the text is not"),
        (TEXT.encode("latin-1"), "line 2: expected UTF-8 text, got the byte 0xe9; if 'Café Noir.' is right, .*windows-1252"),
        ("Café\n".encode() + "Café\n".encode("latin-1"), "line 2: .* byte 0xe9; .* the file mixes two encodings"),
        ("Café".encode("latin-1"), "line 1: .* byte 0xe9; if 'Café' is right"),
        (codecs.BOM_UTF8 + "ab\nCafé\n".encode("latin-1"), "line 2: .* byte 0xe9; if 'Café' is right"),
        ((TEXT + TEXT).encode()[:-8], "line 4: .* other characters are UTF-8, the file was cut inside its last character"),
        (b"many\nlines of a text file\nand one with\0 NUL\n", "line 3: NUL, a character that no text has"),
        ("a\x1b[1mb\n", r"line 1: U.001B, a control character, in 'a\\x1b"),
        (gzip.compress(b"x", mtime=0), "expected text, got gzip data"),
        (b"PK\x03\x04", "expected text, got a zip archive, such as .xlsx"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "got a Git LFS pointer"),
        ("<!DOCTYPE html>\n<html>", "got an HTML page"),
        ('{"text": "x"}\n', "expected one text on each line, got JSON lines"),
        ("text,label\nx,1\n", "expected one text on each line, got a table with a header: text,label"),
        ("", "there is no text in it"),
    ],
)
def test_what_is_no_text_is_refused_with_its_line_and_the_probable_cause(
    content: str | bytes, sentence: str, write: Write
) -> None:
    path = write("a.txt", content)
    with pytest.raises(UserError, match=f"^{path}[:,] .*{sentence}|^{path}[:,] {sentence}"):
        read_texts(path)
    assert refusal(Files(path).load) == refusal(lambda: read_texts(path))


def test_the_same_bytes_are_refused_in_settings_tasks_and_targets(write: Write) -> None:
    settings, targets = b"training: {steps: 3}  # \xe9\n", b'{"controls": ["food=Caf\xe9"]}\n'
    assert "line 1: expected UTF-8 text, got the byte 0xe9" in refusal(lambda: read_config([write("a.yaml", settings)]))
    assert "line 1: expected UTF-8 text, got the byte 0xe9" in refusal(lambda: read_tasks(write("b.yaml", settings)))
    assert "line 1: expected UTF-8 text, got the byte 0xe9" in refusal(lambda: target_rows(write("c.jsonl", targets)))
    escaped = write("e.jsonl", '{"controls": ["food=Thai"], "reference": "a\\ud800"}')
    assert f"{escaped}, line 1: U+D800, half a surrogate pair" in refusal(lambda: target_rows(escaped))
    assert read_config([write("d.yaml", "training: {steps: 3}".encode("utf-16"))]).training.steps == 3


def test_signs_of_a_wrong_encoding_are_reported_and_the_texts_kept(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("a.txt", "fine\nsmart \x93quotes\x94\nlost \ufffd\n")
    assert [text for _, text in read_texts(path)] == ["fine", "smart \x93quotes\x94", "lost \ufffd"]
    said = capsys.readouterr().err
    assert said == f"{path}, line 2: U+0093, U+FFFD, a sign of a wrong encoding; the text is kept as it is, and so are 1 more\n"


# Lines


def test_a_line_ends_with_a_newline_or_a_carriage_return_and_with_nothing_else(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("a.txt", "a\r\nb\rc\n1\x0b2\x0c3\x854\u20285\u20296\n")
    assert texts_of(path) == ["a", "b", "c", "1\x0b2\x0c3\x854\u20285\u20296"]
    assert f"{path}, line 4: U+000B is white space here and ends no line\n" in capsys.readouterr().err
    content = json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False)
    assert texts_of(write("a.jsonl", content)) == ["a\u2028b\x85c"]
    target = json.dumps({"controls": ['Words("a")'], "reference": "a\u2028b"}, ensure_ascii=False)
    assert [row for _, row, _ in target_rows(write("t.jsonl", target))] == [json.loads(target)]


def test_a_very_long_line_is_one_text(write: Write) -> None:
    assert texts_of(write("a.txt", "word " * 10**6)) == [("word " * 10**6).strip()]


# Tables


def test_a_column_or_key_that_is_given_twice_is_refused(write: Write, tmp_path: Path) -> None:
    assert "its header names 'text' twice" in refusal(lambda: read_texts(write("a.csv", "text,label,text\nx,1,z\n")))
    assert "line 1: expected a JSON object on each line: 'text' is given twice" in refusal(
        lambda: read_texts(write("a.jsonl", '{"text": "a", "text": "b"}\n'))
    )
    pyarrow.parquet.write_table(pyarrow.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "a.parquet")
    assert "it has two columns 'text'" in refusal(lambda: read_texts(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ('text,l\na,1\n"b\n' + "c,1\n" * 300, 3, "a quote is never closed"),
        ('text,l\na,1\n"b\n' + "c,1\n" * 300 + 'd",2\n', 3, "a quote is closed only 301 lines later"),
        ('text,l\n"a\nb","c\n' + "d\n" * 300 + '",2\n', 3, "a quote is closed only 301 lines later"),
        ('text,l\na,1\n"b\nc" d,2\n', 3, "',' expected after '\"', on line 4"),
        ('text,l\n"' + "x" * 200_000 + '",2\n', 2, "more than 131072 characters"),
        ('"text\nx\n', 1, "a quote is never closed"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 and "\n" not in value else "",
)
def test_a_quote_that_swallows_lines_is_refused_with_the_line_on_which_its_cell_begins(
    content: str, line: int, reason: str, write: Write
) -> None:
    assert f"a.csv, line {line}: not valid CSV: in the cell that begins here, {reason}" in refusal(
        lambda: read_texts(write("a.csv", content))
    )


def test_a_cell_of_several_lines_is_a_text_and_its_row_is_named_by_its_first_line(write: Write) -> None:
    path = write("a.csv", 'text,l\n"a\nb",1\n\nc,2\n')
    assert read_texts(path) == [(f"{path}, line 2", "a\nb"), (f"{path}, line 5", "c")]
    assert "a.csv, line 4: expected 2 columns (text, l), got 1" in refusal(
        lambda: read_texts(write("a.csv", 'text,l\n"a\nb",1\nc\n'))
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.CSV", "id,text\n1,The pub\n"),
        ("a.Jsonl", '{"text": "The pub"}\n'),
        ("a.TXT", "The pub\n"),
        ("a.TXT.GZ", gzip.compress(b"The pub\n", mtime=0)),
        ("a.tsv", "id\ttext\n1\tThe pub\n"),
        ("a.csv", "id;text\n1;The pub\n"),
        ("a.csv", "id\ttext\n1\tThe pub\n"),
        ("a.csv", "id|text\n1|The pub\n"),
    ],
)
def test_formats_are_known_by_their_suffix_in_any_case_and_delimiters_by_the_header(
    name: str, content: str | bytes, write: Write
) -> None:
    path = write(name, content)
    assert texts_of(path) == ["The pub"]
    assert Files(path, validation_share=0).load()["train"]["text"][:] == ["The pub"]


def test_a_folder_a_missing_file_and_a_damaged_one_are_named_in_a_sentence(write: Write, tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    assert refusal(lambda: read_texts(f"{tmp_path}/folder.txt")) == f"{tmp_path}/folder.txt: expected a file, got a folder"
    assert "there is no such file" in refusal(lambda: read_texts(f"{tmp_path}/none.txt"))
    foreign, cut = write("a.txt.gz", b"no gzip"), write("b.txt.gz", gzip.compress(b"many words" * 100, mtime=0)[:-12])
    assert "a.txt.gz: the file is damaged" in refusal(lambda: read_texts(foreign))
    assert "b.txt.gz: the file is damaged" in refusal(lambda: read_texts(cut))
    assert "a.parquet: the file is damaged" in refusal(lambda: read_texts(write("a.parquet", "text\nx\n")))
    assert "expected a file ending in one of .txt" in refusal(Files("").load)


# Values


@pytest.mark.parametrize("value", ["NaN", "0", "true", '["a"]', '{"a": 1}'])
def test_what_is_no_text_in_a_text_column_is_refused_with_its_row(value: str, write: Write) -> None:
    path = write("a.jsonl", '{"text": "a"}\n{"text": ' + value + "}\n")
    assert f"{path}, line 2: column 'text' should hold text, got" in refusal(lambda: read_texts(path))
    assert refusal(lambda: read_file(path)) == refusal(lambda: read_texts(path))


@pytest.mark.parametrize("escape", ["\\ud800", "\\u0000", "\\u001b"])
def test_a_character_that_no_text_has_is_refused_with_its_row(escape: str, write: Write) -> None:
    path = write("a.jsonl", '{"text": "a"}\n{"text": "x ' + escape + '"}\n')
    assert f"{path}, line 2: U+{escape[2:].upper()}, " in refusal(lambda: read_texts(path))
    assert refusal(lambda: read_file(path)) == refusal(lambda: read_texts(path))


def test_columns_of_bytes_do_not_matter_unless_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {"text": ["a", "b"], "image": [{"bytes": b"\xff"}] * 2, "raw": [b"\xff", b"x"], "binary_n": [1, 2]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert read_file(path)[:] == {"text": ["a", "b"], "binary_n": [1, 2]}
    assert read_texts(str(path)) == [(f"{path}, row 1", "a"), (f"{path}, row 2", "b")]
    for read in (
        lambda: read_texts(str(path), "raw"),
        lambda: read_file(path, "raw"),
        lambda: read_file(path, "text", ["raw"]),
    ):
        assert refusal(read) == f"{path}: column 'raw' holds bytes, expected text or numbers"


def test_rows_without_text_are_reported(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("a.csv", "text,l\nx,1\n,2\n  ,3\n")
    assert [text for _, text in read_texts(path)] == ["x"]
    assert (
        capsys.readouterr().err == f"{path}, line 3: there is no text in 'text', and the row is left out, and so are 1 more\n"
    )


# Normal forms


def test_texts_stay_as_they_are_and_names_labels_and_attributes_are_compared_in_one_normal_form(write: Write) -> None:
    path = write("a.csv", f"text,{NFD}\n{NFD} one,{NFC}\n{NFC} two,{NFD}\n")
    rows = read_file(path, "text", [NFC])
    assert rows["text"][:] == [f"{NFD} one", f"{NFC} two"]
    assert rows["attributes"][:] == [{NFC: NFC}] * 2
    (field,) = fields_of(rows, [f"attributes.{NFD}"], TextLabels())
    assert field.values(rows) == [NFC, NFC]
    assert [text for _, text in read_texts(path, NFC)] == [NFC, NFD]
    lines = datasets.Dataset.from_list([{"text": "a", "mood": NFC}, {"text": "b", "mood": NFD}])
    assert Field("mood").values(lines) == [NFC, NFC]


def test_two_columns_whose_names_differ_only_in_their_normal_form_are_refused(write: Write) -> None:
    assert "its header names" in refusal(lambda: read_table(write("a.csv", f"{NFC},{NFD}\n1,2\n")))
    assert "is given twice" in refusal(lambda: read_table(write("a.jsonl", json.dumps({NFC: 1, NFD: 2}))))


@pytest.mark.parametrize("form", [NFC, NFD])
def test_controls_are_read_in_one_normal_form(form: str) -> None:
    assert read_control(f"{form}={form}") == Attribute(NFC, NFC)
    assert read_control(f'Words("{form}")') == Words(NFC)


def test_a_missing_label_is_no_value_and_a_wrong_one_is_refused(write: Write) -> None:
    lines = '{"text": "a", "mood": "good"}\n{"text": "b", "mood": NaN}\n{"text": "c"}\n'
    assert Field("mood").values(read_file(write("a.jsonl", lines))) == ["good", None, None]
    rows = read_file(write("a.jsonl", '{"text": "a", "mood": NaN}\n'), "text", ["mood"])
    assert rows["attributes"][:] == [{}]
    wrong = write("b.jsonl", '{"text": "a", "mood": {"x": 1}}\n')
    assert "b.jsonl, line 1: column 'mood' should hold a word or a number, got {'x': 1}" in refusal(
        lambda: read_file(wrong, "text", ["mood"])
    )
    mixed = read_file(write("c.jsonl", '{"text": "a", "m": {"x": "1"}}\n{"text": "b", "m": "x"}\n'))
    assert "labels: expected a mapping in each row of 'm', got x" in refusal(lambda: Field("m", "x").values(mixed))
