"""Items of sources and references, and the outputs of systems for them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from diffusionlm.config import UserError
from diffusionlm.data.references import Item, grouped, read_items, read_outputs

ITEMS = [Item("one", ("a b", "a c")), Item("two", ("d",))]


def test_rows_of_one_source_are_one_item_wherever_they_stand() -> None:
    assert grouped(["x", "y", "x"], ["1", "2", "3"]) == {"x": ["1", "3"], "y": ["2"]}
    with pytest.raises(ValueError):
        grouped(["x"], [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("e2e.csv", 'mr,ref\none,a b\none,"a c"\ntwo,d\n'),
        ("semicolons.csv", "src;trg\none;a b\none;a c\ntwo;d\n"),
        ("diffuseq.jsonl", '{"src": "one", "trg": "a b"}\n{"src": "two", "trg": "d"}\n{"src": "one", "trg": "a c"}\n'),
        ("lists.jsonl", '{"source": "one", "target": ["a b", "a c"]}\n{"source": "two", "target": "d"}\n'),
    ],
)
def test_each_form_of_the_data_gives_the_same_items(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_items(tmp_path / name) == ITEMS


def test_the_slots_of_meaning_representations_are_read(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('mr,ref\n"name[The Oak], area[by, and on, the hill]",The Oak is on the hill.\n')
    assert read_items(tmp_path / "d.csv")[0].slots == {"name": "The Oak", "area": "by, and on, the hill"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "expected the columns source and target; mr and ref; src and trg, got 'a', 'b'"),
        ("source,target\n", "expected the columns|there is no text"),
        ("source,target\n1,\n", "there is no text"),
    ],
)
def test_data_without_sources_or_references_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_items(tmp_path / "d.csv")


def test_a_row_without_a_reference_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d.jsonl").write_text('{"source": "one", "target": "a"}\n{"source": "two"}\n')
    assert read_items(tmp_path / "d.jsonl") == [Item("one", ("a",))]
    assert "line 2: there is no text in 'target'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"source": "s", "target": []}', r"line 1: column 'target' is an empty list"),
        ('{"source": "s", "target": ["a", 3]}', r"line 1: column 'target' should hold text, got 3"),
        ('{"source": 5, "target": "a"}', r"line 1: column 'source' should hold text, got 5"),
    ],
)
def test_a_value_that_is_no_text_is_refused(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        read_items(tmp_path / "d.jsonl")


def read(folder: Path, name: str, text: str) -> list[list[str]]:
    (folder / name).write_text(text)
    return read_outputs(folder / name, ITEMS)


def test_outputs_are_lines_or_rows(tmp_path: Path) -> None:
    assert read(tmp_path, "o.txt", "x\ny\n") == [["x"], ["y"]]
    assert read(tmp_path, "o.txt", "x\r\ny") == [["x"], ["y"]]
    assert read(tmp_path, "o.csv", "text\nx\ny\n") == [["x"], ["y"]]
    rows = [("two", "y"), ("one", "x"), ("one", "z")]
    for column in ("source", "mr", "src"):
        lines = "".join(json.dumps({column: source, "text": text, "seconds": 1}) + "\n" for source, text in rows)
        assert read(tmp_path, "o.jsonl", lines) == [["x", "z"], ["y"]]


def test_an_empty_line_is_an_empty_output_and_shifts_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(tmp_path, "o.txt", "\ny\n") == [[""], ["y"]]
    assert "o.txt, line 1: an empty output, and it is scored as one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("o.txt", "x\n", "expected 2 outputs, one for each distinct source in the order of the data, got 1;"),
        ("o.txt", "x\ny\nz\n", "got 3; that is one for each reference"),
        ("o.txt", "\n\n", "there is no text in it"),
        ("o.txt", '{"text": "x"}\n{"text": "y"}\n', "expected one text on each line, got JSON lines"),
        ("o.csv", "out\nx\ny\n", "no column 'text' among 'out'"),
        ("o.jsonl", '{"text": "x"}\n{"text": null}\n', "line 2: column 'text' should hold text, got None"),
        ("o.jsonl", '{"text": "x\\u0000"}\n{"text": "y"}\n', r"line 1: U\+0000, a control character"),
        ("o.jsonl", '{"source": "one", "text": "x"}\n', "no output for 1 of 2 sources, such as 'two'"),
        (
            "o.jsonl",
            '{"source": "tow", "text": "x"}\n',
            "line 1: the source 'tow' is not in the references; did you mean 'two'?",
        ),
    ],
)
def test_outputs_that_do_not_fit_the_sources_are_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, name, text)


def test_the_e2e_challenge_has_630_test_sources() -> None:
    folder = Path(os.environ.get("DIFFUSIONLM_E2E", Path(__file__).parents[3] / "shared" / "data" / "e2e"))
    if not folder.is_dir():
        pytest.skip(f"the E2E data is not in {folder} (DIFFUSIONLM_E2E names another folder)")
    for name, sources, references in (("testset_w_refs.csv", 630, 4693), ("devset.csv", 547, 4672)):
        items = read_items(folder / name)
        assert (len(items), sum(len(item.references) for item in items)) == (sources, references)
        assert all(item.slots and item.slots["name"] for item in items)
