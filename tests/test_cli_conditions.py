"""Conditions on the command line: sources and labels to generate from, edits, and outputs against references."""

from __future__ import annotations

import io
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_conditions import CONDITIONS, trained

from diffusionlm.cli import main
from diffusionlm.pipelines.auto import open_pipeline

STEPS = ["--steps", "2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the folder of a model for each of ``CONDITIONS``."""
    folder = tmp_path_factory.mktemp("models")
    return {name: trained(folder, name) for name in CONDITIONS}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(name: str, *lines: str | dict[str, Any]) -> str:
    """Write a file of lines, objects as JSON; return its name."""
    Path(name).write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return name


def rows(arguments: list[str], capsys: pytest.CaptureFixture[str], said: str = "") -> list[dict[str, Any]]:
    """Run a command that must succeed, with the line ``said`` on stderr and no other; return its JSON lines."""
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err.strip() == said
    return [json.loads(line) for line in out.splitlines()]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with one sentence and no output; return the sentence."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("diffusionlm: ") and err.count("\n") == 1, err
    return err.removeprefix("diffusionlm: ").strip()


# Sources


@pytest.mark.parametrize("model", ["source", "several", "masked"])
def test_samples_come_in_the_order_of_their_sources(
    model: str, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = written("s.txt", "dog cat", "bee", "ant ant", "")  # lines after the last source are none
    said = "no value is given for kind: samples with the null condition there" if model == "several" else ""
    found = rows(["generate", models[model], "--source", file, *STEPS], capsys, said)
    assert [row["source"] for row in found] == ["dog cat", "bee", "ant ant"]
    found = rows(["generate", models[model], "--source", file, "-n", "2", "--batch-size", "1", *STEPS], capsys, said)
    assert [(row["index"], row["source"]) for row in found] == [
        (0, "dog cat"), (1, "dog cat"), (2, "bee"), (3, "bee"), (4, "ant ant"), (5, "ant ant"),
    ]  # fmt: skip


def test_sources_of_standard_input_and_of_tables(
    models: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"dog cat\nbee\n")))
    assert [row["source"] for row in rows(["generate", models["source"], "--source", "-", *STEPS], capsys)] == [
        "dog cat",
        "bee",
    ]
    for file in (written("s.csv", "src,trg", "dog cat,", "bee,"), written("s.jsonl", {"mr": "dog cat"}, {"mr": "bee"})):
        found = rows(["generate", models["source"], "--source", file, *STEPS], capsys)
        assert [row["source"] for row in found] == ["dog cat", "bee"] and "references" not in found[0]


def test_rows_with_references_carry_them(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [{"src": "ant bee", "trg": "bee ant"}, {"src": "cat", "trg": "cat"}, {"src": "ant bee", "trg": "the bee"}]
    found = rows(["generate", models["source"], "--source", written("s.jsonl", *pairs), "-n", "2", *STEPS], capsys)
    assert [row["references"] for row in found] == [["bee ant", "the bee"]] * 2 + [["cat"]] * 2


def test_a_source_is_generated_from_before_the_next_one_is(models: dict[str, str]) -> None:
    pipe = open_pipeline(models["source"])
    seen: list[int] = []
    sampling = replace(pipe.sampling, batch_size=1, steps=3, sweeps=0)
    stream = pipe.stream(1, sampling, lambda state, _: seen.append(state.step), source=["ant", "bee", "cat"])
    assert next(stream).source == "ant" and max(seen) == 3
    first = len(seen)
    assert [row.source for row in stream] == ["bee", "cat"] and len(seen) == 3 * first


def test_each_target_of_controls_has_all_sources(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    targets = written("t.jsonl", {"controls": ["Length(2)"]}, {"controls": ["Length(3)"]})
    command = ["generate", models["source"], "--source", written("s.txt", "ant", "bee"), "--targets", targets, *STEPS]
    found = rows(command, capsys)
    assert [(row["target"], row["source"], row["length"]) for row in found] == [
        (0, "ant", 2), (0, "bee", 2), (1, "ant", 3), (1, "bee", 3),
    ]  # fmt: skip


def test_unknown_words_of_sources_are_counted_once(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    file = written("s.txt", "ant", "dog crocodile zebra")
    said = "source: 2 words are not in the vocabulary of this model and are read as [UNK]: the first is 'crocodile'"
    targets = written("t.jsonl", {"controls": ["Length(2)"]}, {"controls": ["Length(3)"]})
    assert len(rows(["generate", models["source"], "--source", file, "--targets", targets, *STEPS], capsys, said)) == 4
    said = "source: 1 word is not in the vocabulary of this model and is read as [UNK]: 'yak'"
    pair = ["--condition", "kind=low", "--condition", "source=ant yak"]
    assert len(rows(["generate", models["several"], *pair, "-n", "1", *STEPS], capsys, said)) == 1


SOURCES: list[tuple[str, tuple[str | dict[str, Any], ...], str]] = [
    ("s.txt", ("ant", "", "bee"), "s.txt: expected a source on each line before line 3, got an empty one"),
    ("s.txt", (), "s.txt: there is no text in it"),
    ("s.txt", ("ant",) * 3 + ("ant " * 7,), "source: expected at most 6 tokens (model.condition.max_length), got 7: 'ant ant"),
    ("s.jsonl", ({"src": "ant"}, {"src": ""}), "s.jsonl, line 2: expected a source text, got none"),
    ("s.jsonl", ({"text": "ant"},), "s.jsonl: expected a column of sources, source or mr or src, got 'text'"),
    ("s.csv", ("text,trg", "ant,bee"), "s.csv: expected a column of sources, source or mr or src, got 'text', 'trg'"),
    ("s.png", ("ant",), "s.png: expected a file ending in one of .txt"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "lines", "sentence"), SOURCES, ids=[sentence for *_, sentence in SOURCES])
def test_files_of_sources_with_a_fault_are_refused(
    name: str, lines: Any, sentence: str, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(["generate", models["source"], "--source", written(name, *lines)], capsys).startswith(sentence)


def test_a_missing_file_and_an_empty_standard_input_are_refused(
    models: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(["generate", models["source"], "--source", "no.txt"], capsys).startswith("no.txt: there is no such file")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert refused(["generate", models["source"], "--source", "-"], capsys) == "standard input: there is no text in it"


# Values


def test_a_value_is_given_alone_or_by_its_name(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    alone, named = (
        rows(["generate", models["label"], "--condition", value, "-n", "2", *STEPS], capsys) for value in ("low", "kind=low")
    )
    assert alone == named and len(alone) == 2
    file = written("s.txt", "ant bee")
    several = ["generate", models["several"], "--condition", "kind=low", *STEPS, "-n", "1"]
    one, same = rows([*several, "--source", file], capsys), rows([*several, "--condition", "source=ant bee"], capsys)
    assert one[0]["text"] == same[0]["text"] and one[0]["source"] == "ant bee"


def test_guidance_acts(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    file = written("s.txt", "ant bee", "cat dog")
    assert len(rows(["generate", models["source"], "--source", file, "--cfg", "2", *STEPS], capsys)) == 2
    assert len(rows(["generate", models["label"], "--condition", "low", "--cfg", "0.5", "-n", "1", *STEPS], capsys)) == 1


@pytest.mark.parametrize("model", ["source", "label", "several"])
def test_samples_without_a_condition_are_said_to_be(
    model: str, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = "no condition is given: samples of the model without a condition"
    assert len(rows(["generate", models[model], "-n", "1", *STEPS], capsys, said)) == 1
    assert len(rows(["edit", models[model], "--text", "ant bee", *STEPS], capsys, said)) == 1


REFUSED: dict[str, str] = {
    "generate label --condition low --condition high": "condition: expected a value of kind, got 2: 'low', 'high'",
    "generate label --condition kind=low --condition kind=high": "condition: 'kind' is given twice",
    "generate label --condition lo": "condition: kind has no value 'lo'; did you mean 'low'?",
    "generate label --condition kind=lo": "condition: kind has no value 'lo'; did you mean 'low'?",
    "generate label --source s.txt": "source: this model is conditioned on kind, not on a source text",
    "generate several --condition low": "condition: 'low' has no value: expected NAME=VALUE, of kind, source",
    "generate several --condition kid=low": "condition: this model has no condition called 'kid'; did you mean 'kind'?",
    "generate several --condition source=ant --source s.txt": "condition: the source is given twice; leave one out",
    "generate source --condition ant --source s.txt": "condition: expected the source alone, which is given already; leave it out",
    "generate source --cfg 2": "cfg: there is no condition to guide to; leave it at 1",
    "generate source --source s.txt --cfg-floor 0": "cfg_floor: cfg is not above 1, so this setting has no effect; leave it out, or raise cfg",
    "generate source --source s.txt --cfg 2 --cfg-floor 1": "sampling.cfg_floor: expected a share from 0 to below 1, got 1.0",
    "generate plain --cfg-floor 0": "cfg_floor: this model was trained without a condition; leave it out",
    "generate causal --cfg-floor 0": "cfg_floor: an autoregressive model has no condition; leave it out",
    "generate plain --source s.txt": "source: this model was trained without a condition; leave it out",
    "generate plain --condition low": "condition: this model was trained without a condition; leave it out",
    "generate plain --cfg 2": "cfg: this model was trained without a condition; leave it out",
    "generate causal --source s.txt": "source: an autoregressive model has no condition; leave it out",
    "edit plain": "edit: expected --text TEXT, or --file FILE",
    "edit plain --text ant --level 1.5": "level: expected a number from 0 (the text) to 1 (pure noise), got 1.5",
    "edit plain --text ant --level much": "argument --level: invalid float value: 'much'; see diffusionlm edit --help",
    "edit plain --text ant --level nan": "level: expected a number from 0 (the text) to 1 (pure noise), got nan",
    "edit plain --text ant --count 0": "--count: expected at least 1, got 0",
    "edit plain --text ''": "text: expected 1 to 6 tokens, got 0: ''",
    "edit plain --text 'ant ant ant ant ant ant ant'": "text: expected 1 to 6 tokens, got 7: 'ant ant ant ant ant ant ant'",
    "edit plain --text 'ant yak'": "text: the model does not know the word 'yak' of 'ant yak'",
    "edit plain --text 'ant bee' --control Length(5)": "control: Length(5) needs 5 tokens, but length is 2",
    "edit plain --text ant --condition low": "condition: this model was trained without a condition; leave it out",
    "edit plain --text ant --cfg 2": "cfg: this model was trained without a condition; leave it out",
    "edit plain --file no.txt": "no.txt: there is no such file",
    "edit masked --text ant": "masked: a diffusionlm-masked model edits no texts; diffusion models do",
    "edit causal --text ant": "causal: a llama model edits no texts; diffusion models do",
    "evaluate plain --references r.jsonl --out e": "plain: expected a model that is conditioned on a source text, but this one was trained without a condition",
    "evaluate label --references r.jsonl --out e": "label: expected a model that is conditioned on a source text, but this one is conditioned on kind",
    "evaluate causal --references r.jsonl --out e": "causal: expected a model that is conditioned on a source text, but this one was trained without a condition",
    "evaluate source --references r.jsonl --out e --sampling.cfg -1": "sampling.cfg: expected 0 to 10000, got -1.0",
}  # fmt: skip


@pytest.mark.parametrize("command", REFUSED)
def test_requests_that_do_not_fit_the_model_are_one_sentence(
    command: str, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written("s.txt", "ant bee")
    written("r.jsonl", {"source": "ant bee", "target": "bee ant"})
    for name, folder in models.items():
        (tmp_path / name).symlink_to(folder)
    assert refused(shlex.split(command), capsys).startswith(REFUSED[command])
    assert not Path("e").exists()


# Edits


def test_edits_of_texts_and_files_follow_controls(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["--text", "ant bee cat", "--text", "dog"]
    found = rows(["edit", models["plain"], *texts, "--level", "0", "-n", "2"], capsys)
    assert [row["text"] for row in found] == ["ant bee cat"] * 2 + ["dog"] * 2
    file = written("t.txt", "ant bee", "cat cat cat")
    found = rows(
        ["edit", models["plain"], "--file", file, "--level", ".9", "--control", '~Words("cat")', "--steps", "4"], capsys
    )
    assert [(row["source"], row["length"]) for row in found] == [("ant bee", 2), ("cat cat cat", 3)]
    assert all("cat" not in row["text"] and row["controls"][0]["passed"] for row in found)
    said = "no value is given for source: samples with the null condition there"
    command = ["edit", models["several"], "--text", "ant", "--condition", "kind=low", "--cfg", "2", *STEPS]
    found = rows(command, capsys, said)
    assert len(found) == 1


def test_a_shift_of_the_only_step_that_an_edit_has_left_is_refused(
    models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["edit", models["plain"], "--text", "dog", "--steps", "4", "--sampling.noise_shift", "2", "--level"]
    assert main([*command, ".3"]) == 2
    assert "noise_shift: there is one step, whose start stays, so this setting has no effect" in capsys.readouterr().err
    assert len(rows([*command, ".6"], capsys)) == 1


# Outputs against references


def test_a_conditional_model_is_scored_against_references_and_resumed(
    models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = written("r.jsonl", {"source": "ant yeti", "target": ["bee ant", "a bee"]}, {"source": "cat", "target": "cat"})
    command = [
        "evaluate",
        models["source"],
        "--references",
        file,
        "--out",
        "e",
        "--sampling.steps",
        "2",
        "--count",
        "2",
        "--no-ter",
    ]
    assert main(command) == 0
    first, said = capsys.readouterr()
    assert said.count("1 word is not in the vocabulary of this model and is read as [UNK]: 'yeti'") == 1
    found = [json.loads(line) for line in first.splitlines()]
    assert [(row["system"], row["sources"], row["outputs"]) for row in found] == [
        ("reference text", 1, 1), ("source (steps 2)", 2, 4),
    ]  # fmt: skip
    (texts,) = Path("e", "texts").glob("*.jsonl")
    assert [json.loads(line)["source"] for line in texts.read_text().splitlines()] == ["ant yeti"] * 2 + ["cat"] * 2
    before = texts.stat().st_mtime_ns
    assert main(command) == 0
    again, said = capsys.readouterr()
    assert again == first and "2 of 2 rows are in the report already" in said and texts.stat().st_mtime_ns == before
