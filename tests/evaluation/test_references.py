"""Figures of outputs against references, their standard errors, and ``evaluate --references``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from sacrebleu import BLEU, CHRF, TER

from diffusionlm.cli import main
from diffusionlm.data.references import Item
from diffusionlm.evaluation.references import bootstrap, left_out, ratio, score_outputs
from diffusionlm.evaluation.text_metrics import TrainingTexts

ITEMS = [
    Item("the price of the oak", ("The Oak is a cheap pub by the river.", "A cheap pub, The Oak, stands by the river.")),
    Item("where is elm house", ("Elm House is in the city centre.", "Find Elm House in the centre of town.")),
    Item("who eats at the ash", ("Families like The Ash.",)),
]
OUTPUTS = [["The Oak is a pub on the river."], ["Elm House is in town."], ["Children like The Ash a lot."]]


def test_outputs_that_are_references_are_perfect_and_errors_vanish() -> None:
    scores = score_outputs(ITEMS, [[item.references[0]] for item in ITEMS])
    for name in ("BLEU", "BLEU, lower case", "chrF", "length ratio"):
        assert scores.figures[name].value == pytest.approx(100) and scores.figures[name].error == pytest.approx(0, abs=1e-6)
    assert scores.figures["TER"].value == 0 and scores.figures["ROUGE-L (E2E)"].value == 100
    assert scores.signatures["BLEU"].startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp")


def test_the_sums_of_statistics_give_sacrebleus_public_scores_and_signatures() -> None:
    scores = score_outputs(ITEMS, OUTPUTS)
    streams: Any = [[item.references[i] if i < len(item.references) else None for item in ITEMS] for i in range(2)]
    for name, metric in {"BLEU": BLEU(), "BLEU, lower case": BLEU(lowercase=True), "chrF": CHRF(), "TER": TER()}.items():
        public = metric.corpus_score([texts[0] for texts in OUTPUTS], streams)
        assert scores.figures[name].value == pytest.approx(public.score)
        assert scores.signatures[name] == str(metric.get_signature())


def test_ter_by_hand() -> None:
    def ter(output: str, *references: str) -> float | None:
        return score_outputs([Item("s", references)], [[output]]).figures["TER"].value

    assert ter("a b c d", "a b x d") == pytest.approx(25)  # one substitution in four words
    assert ter("a b c d", "a b x d", "a b c d e f") == pytest.approx(20)  # the fewest edits, one, by five words on average


def test_a_standard_error_is_that_of_the_mean_and_counts_sources() -> None:
    values = numpy.random.default_rng(3).normal(size=400)
    rows = numpy.stack([values, numpy.ones(400)], 1)
    error = bootstrap(rows, ratio, resamples=2000)
    assert error == pytest.approx(100 * values.std(ddof=1) / 20, rel=0.06)
    assert bootstrap(rows, ratio, resamples=2000) == error != bootstrap(rows, ratio, resamples=2000, seed=1)
    assert bootstrap(rows[:1], ratio) is None
    copied = score_outputs(ITEMS, [texts * 4 for texts in OUTPUTS], ter=False).figures
    once = score_outputs(ITEMS, OUTPUTS, ter=False).figures
    for name in ("chrF", "NIST", "ROUGE-1", "length ratio"):  # more outputs of a source are not more sources
        assert copied[name].value == pytest.approx(once[name].value) and copied[name].error == pytest.approx(once[name].error)


def test_what_cannot_be_computed_has_a_reason() -> None:
    figures = score_outputs(ITEMS, OUTPUTS, ter=False).figures
    missing = {name: figure.reason for name, figure in figures.items() if figure.value is None}
    assert missing["TER"] == "left out" and "several outputs" in missing["self-BLEU"] == missing["unique outputs"]
    assert "not meaning representations" in missing["slot errors"] and "--data.corpus" in missing["copies of training targets"]
    assert all(missing.values())


def test_variety_is_of_the_outputs_of_each_source() -> None:
    outputs = [["a b", "a b"], ["a b", "c d"], ["e e", "e f"]]
    figures = score_outputs(ITEMS, outputs, ter=False).figures
    assert figures["distinct-1"].value == pytest.approx(100 * (2 / 4 + 1 + 2 / 4) / 3)
    assert figures["distinct-2"].value == pytest.approx(100 * (1 / 2 + 1 + 1) / 3)
    assert figures["unique outputs"].value == pytest.approx(100 * (1 / 2 + 1 + 1) / 3)
    assert score_outputs(ITEMS, [["a b c d e f"] * 2] * 3, ter=False).figures["self-BLEU"].value == pytest.approx(100)


def test_copies() -> None:
    outputs = [["The price of nothing"], ["where is elm house"], ["Families like The Ash."]]
    figures = score_outputs(ITEMS, outputs, training=TrainingTexts(["Families like  The Ash."]), ter=False).figures
    assert figures["copies of the source"].value == figures["copies of training targets"].value == pytest.approx(100 / 3)
    assert figures["source's words repeated"].value == pytest.approx(100 * (3 / 4 + 1 + 2 / 5) / 3)


def test_empty_outputs_have_the_worst_scores() -> None:
    figures = score_outputs(ITEMS, [[""]] * 3).figures
    assert [figures[name].value for name in ("BLEU", "chrF", "NIST", "ROUGE-L (E2E)")] == [0, 0, 0, 0]
    assert figures["TER"].value == pytest.approx(100 * (9 + 7 + 4) / (9 + 7.5 + 4))  # all words of the shortest references


def test_slot_errors_are_shares_of_all_slots() -> None:
    slots = [{"name": "The Oak", "eatType": "pub", "area": "riverside"}, {"name": "Elm House"}]
    items = [Item(str(each), ("x",), each) for each in slots]
    scores = score_outputs(items, [["The Oak is a coffee shop."], ["Elm House is cheap."]], ter=False)
    names = ("slot errors", "slots missing", "slots wrong", "slots added", "outputs without slot error")
    assert [scores.figures[name].value for name in names] == [75, 25, 25, 25, 0]
    assert scores.slots["area"] == {"missing": 25, "wrong": 0, "added": 0}


def test_one_reference_is_left_out_of_each_source_that_has_two() -> None:
    items, outputs = left_out(ITEMS, seed=1)
    assert [item.source for item in items] == [item.source for item in ITEMS[:2]]
    for item, (text,), whole in zip(items, outputs, ITEMS, strict=False):
        assert sorted([text, *item.references]) == sorted(whole.references)
    assert left_out(ITEMS, seed=1) == (items, outputs)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with references, a system's outputs, and training texts."""
    rows = [{"source": item.source, "target": text} for item in ITEMS for text in item.references]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "system.txt").write_text("".join(texts[0] + "\n" for texts in OUTPUTS))
    (tmp_path / "train.txt").write_text("Elm House is in town.\nSomething else.\n")
    return tmp_path


def command(data: Path, *more: str, texts: str = "system.txt") -> list[str]:
    return ["evaluate", "--references", str(data / "data.jsonl"), "--texts", str(data / texts), *more]


def test_the_command_prints_rows_and_a_table_and_resumes(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(data / "out")]
    assert main(command(data, *out)) == 0
    said = capsys.readouterr()
    human, row = map(json.loads, said.out.splitlines())
    assert (human["system"], human["outputs"], row["system"], row["outputs"]) == ("reference text", 2, "system.txt", 3)
    assert said.err.endswith((data / "out" / "table.txt").read_text())
    assert "tok:13a" in said.err and "BLEU, lower case" in said.err and "needs several outputs per source" in said.err
    saved = json.loads((data / "out" / "references.json").read_text())
    assert saved["rows"] == [human, row] and saved["about"]["sources"] == 3 and saved["about"]["reference_texts"] == 5
    lines = [json.dumps({"source": item.source, "text": text}) for item in ITEMS for text in ("one", "two")]
    (data / "several.jsonl").write_text("\n".join(lines))
    assert main(command(data, *out, "--texts", str(data / "several.jsonl"))) == 0
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert "2 of 3 rows are in the report already" in said.err and rows[:2] == [human, row]
    assert rows[2]["outputs"] == 6 and rows[2]["figures"]["unique outputs"]["value"] == 100
    assert main(command(data, *out, "--seed", "1")) == 2
    assert "holds another evaluation (its seed is 0, not 1)" in capsys.readouterr().err


def test_the_report_is_json_where_that_is_asked_and_training_texts_are_compared(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(data, "--json", "--no-ter", "--data.corpus", str(data / "train.txt"))) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"][1]["figures"]["copies of training targets"]["value"] == pytest.approx(100 / 3)
    assert report["rows"][1]["figures"]["TER"] == {"value": None, "error": None, "reason": "left out"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["evaluate", "--references", "D"],
            "--references: expected a model folder, or the outputs of a system in --texts FILE",
        ),
        (["evaluate", "RUN", "--references", "D.csv", "--out", "O"], "D.csv: there is no such file"),
        (["evaluate", "--references", "D", "--texts", "T", "--judge", "J"], "--judge: does not go with --references"),
        (["evaluate", "--references", "D", "--texts", "T", "--count", "3"], "--count: there is no model to sample from"),
        (["evaluate", "--references", "D", "--texts", "T", "--sampling.steps", "3"], "--sampling.steps: "),
        (
            ["evaluate", "--references", "D", "--texts", "T", "--training.steps", "3"],
            "--training.steps: expected sampling.NAME",
        ),
        (["evaluate", "--references", "D.csv", "--texts", "T"], "D.csv: there is no such file"),
        (["evaluate", "--texts", "T", "--judge", "J", "--no-ter"], "--no-ter: needs --references FILE"),
        (["evaluate", "--texts", "T"], "evaluate: expected --judge FOLDER, or --references FILE, which needs no judge"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and len(said.err.splitlines()) == 1


def test_a_negative_seed_is_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(data, "--seed", "-1")) == 2
    assert capsys.readouterr().err.endswith("seed: expected 0 or more, got -1\n")


def test_a_text_file_with_a_line_too_few_writes_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "short.txt").write_text("one\ntwo\n")
    assert main(command(data, "--out", str(data / "out"), texts="short.txt")) == 2
    said = capsys.readouterr()
    assert "expected 3 outputs, one for each distinct source" in said.err and said.out == "" and not (data / "out").exists()
