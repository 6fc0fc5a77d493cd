"""Control measured as a whole: a tiny model asked by the command line, its table, and where it goes on."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import ROOT, tiny_plain

from diffusionlm.cli import main
from diffusionlm.config import UserError, build
from diffusionlm.controls import Words
from diffusionlm.data.annotators import CorpusRow, Reader
from diffusionlm.evaluation.control.evaluation import ControlConfig, evaluate_control
from diffusionlm.evaluation.control.jobs import Samples, TargetSamples
from diffusionlm.evaluation.control.report import LEFT_ONLY, STEERED, UNGUIDED, ControlReport
from diffusionlm.evaluation.control.tasks import Target, Task, read_tasks
from diffusionlm.evaluation.jobs import REFERENCE
from diffusionlm.evaluation.judge import Judge, perplexity
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.training.run import RunConfig, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a diffusion run that has a classifier of attributes, a judge's run, and tasks, all of the same texts."""
    folder = tmp_path_factory.mktemp("control")
    with gzip.open(ROOT / "data" / "restaurants" / "validation.jsonl.gz", "rt", encoding="utf-8") as lines:
        (folder / "texts.jsonl").write_text("".join(islice(lines, 200)))
    with redirect_stderr(io.StringIO()):
        plain = tiny_plain(folder, data={"corpus": {"train": str(folder / "texts.jsonl"), "name": "files"}})
        train(build(RunConfig, plain), folder / "run", quiet=True)
        rest = {name: plain[name] for name in ("data", "training")}
        causal = {"model": {"name": "causal", "layers": 1, "width": 16, "heads": 2}, "objective": "causal", **rest}
        train(build(RunConfig, causal), folder / "judge", quiet=True)
        classifier = {
            "model": {"name": "classifier", "denoiser": str(folder / "run"), "labels": ["attributes.type", "attributes.price"], "min_count": 5},
            "objective": "classification", **rest,
        }  # fmt: skip
        train(build(RunConfig, classifier), folder / "run/model/classifiers/attributes", quiet=True)
    common = {"split": "train", "targets": 3, "samples": 4, "sampling": {"steps": 3, "sweeps": 0}}
    for name, task in [
        ("length", "length"), ("infill", "infill"), ("food", {"name": "attributes", "fields": ["type", "price"]}),
    ]:  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": task, **common}))
    return folder


def command(folder: Path, out: Path, *tasks: str, more: Sequence[str] = ()) -> list[str]:
    words = ["evaluate", str(folder / "run"), "--judge", str(folder / "judge"), "--out", str(out), *more]
    return [*words, *(word for task in tasks for word in ("--controls", str(folder / f"{task}.yaml")))]


def run(arguments: list[str]) -> str:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        assert main(arguments) == 0
    return out.getvalue()


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.strip().splitlines()) == 1, err
    return err


def texts_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    work = ("work", "unguided_work")
    return [{**row, **{name: {k: v for k, v in row[name].items() if k != "seconds"} for name in work}} for row in rows]


def test_two_tasks_in_one_table(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run(command(folder, out, "length", "infill"))
    assert said == (out / "table.txt").read_text() and (out / "control.png").read_bytes().startswith(b"\x89PNG")
    length, infill = json.loads((out / "control.json").read_text())["rows"]
    # Both hold by construction; what fills a gap is another question.
    for row, name in ((length, "length, exact"), (infill, "infilling, context kept")):
        assert row["metrics"][name][STEERED] == row["metrics"]["all controls"][STEERED] == {"mean": 1, "error": 0}
        assert (row["targets"], row["samples"], row["refused"], row["strength"]) == (3, 4, [], None)
    assert set(infill["perplexity"]) == {STEERED, UNGUIDED, REFERENCE, LEFT_ONLY} > set(length["perplexity"])
    for metrics in (length["metrics"], infill["metrics"]):
        assert all(by[REFERENCE]["mean"] == pytest.approx(1) for by in metrics.values())
    assert infill["metrics"]["infilling, BLEU-4 (paper)"][STEERED]["mean"] < 0.9
    # One call of the denoiser a step, no classifier, no gradient; unguided texts are the same for both tasks.
    assert {k: v for k, v in length["work"].items() if k != "seconds"} == {
        "evaluations": 3, "backwards": 0, "classifications": 0,
    }  # fmt: skip
    files = {path.name.rpartition("-")[0]: texts_of(path) for path in (out / "texts").iterdir()}
    assert set(files) == {"run-length", "run-infill", "run-unguided"}
    judge = Judge.load(folder / "judge")
    texts = [text for line in files["run-length"] for text in line["texts"]]
    assert length["perplexity"][STEERED]["mean"] == pytest.approx(perplexity(judge.score(texts)))
    real = [line["reference"] for line in files["run-length"]]
    assert length["perplexity"][REFERENCE]["mean"] == pytest.approx(perplexity(judge.score(real)))
    for line, free in zip(files["run-length"], files["run-unguided"], strict=True):
        pipeline = Pipeline.from_pretrained(folder / "run")
        asked = {"steps": 3, "sweeps": 0, "seed": line["seed"]}
        assert [row.text for row in pipeline(4, line["controls"], **asked)] == line["texts"]
        assert [row.text for row in pipeline(4, **asked)] == free["texts"] and free["seed"] == line["seed"]


def test_a_sweep_of_strengths_counts_what_it_takes(folder: Path, tmp_path: Path) -> None:
    more = [
        "--strengths",
        "0",
        "2",
        "--sampling.guidance.denoiser_scale=1",
        "--sampling.passes",
        "2",
        "--sampling.batch_size",
        "3",
    ]
    out = tmp_path / "out"
    run(command(folder, out, "food", "length", more=more))
    none, two, length = json.loads((out / "control.json").read_text())["rows"]
    assert [row["strength"] for row in (none, two, length)] == [0, 2, None]  # nothing steers a length by a gradient
    # At strength 0 a text is the unguided one, and so is each figure.
    assert none["work"] == {"evaluations": 6, "backwards": 0, "classifications": 0, "seconds": none["work"]["seconds"]}
    for by in (*none["metrics"].values(), none["perplexity"]):
        assert by[STEERED] == by[UNGUIDED]
    # Two passes a step, the second through the denoiser and on the logits: a classifier is evaluated once for both. Three texts share the
    # six lengths at which the energy is evaluated; salient tokens take one evaluation of an empty text, and seven of tokens.
    # Of a draft of one step and a run of two, each last step needs no gradient through the denoiser.
    assert two["work"] == {"evaluations": 9, "backwards": 1, "classifications": 12, "seconds": two["work"]["seconds"]}
    assert two["unguided_work"] == none["unguided_work"]
    assert {name for name in two["metrics"] if name.startswith("attribute, ")} >= {"attribute, value in the text (paper)"}
    (path,) = (out / "texts").glob("run-*food-strength-2-*")
    header = json.loads(path.read_text().splitlines()[0])
    assert set(header["classifiers"]) == {"attributes"} and header["sampling"]["guidance"]["strength"] == 2


def test_a_number_of_evaluations_is_that_of_guided_and_of_unguided_samples(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in ("2", "8"):
        run(command(folder, out, "length", more=["--evaluations", number]))
    report = json.loads((out / "control.json").read_text())
    assert [row["system"] for row in report["rows"]] == ["run (evaluations 2)", "run (evaluations 8)"]
    for row, asked in zip(report["rows"], (2, 8), strict=True):
        assert row["work"]["evaluations"] == row["unguided_work"]["evaluations"] == asked
        assert row["metrics"]["length, exact"][STEERED]["mean"] == 1


def test_it_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(command(folder, out, "length", "infill"))
    whole = json.loads((out / "control.json").read_text())
    (path,) = (out / "texts").glob("run-infill-*")
    text = path.read_text()
    # As if it had been killed in the middle of a line.
    lines = text.splitlines(True)
    path.write_text("".join(lines[:2]) + lines[2][:40])
    before = {file: file.stat().st_mtime_ns for file in (out / "texts").iterdir() if file != path}
    assert run(command(folder, out, "length", "infill")) == (out / "table.txt").read_text()
    again = json.loads((out / "control.json").read_text())
    assert without_time(again["rows"]) == without_time(whole["rows"])
    assert [json.loads(line)["texts"] for line in path.read_text().splitlines()[1:]] == [
        json.loads(line)["texts"] for line in text.splitlines()[1:]
    ]
    # More targets add to the file; other samples begin another.
    run(command(folder, out, "infill", more=["--targets-count", "4"]))
    assert path.read_text().splitlines()[1:4] and len(texts_of(path)) == 4
    rows = json.loads((out / "control.json").read_text())["rows"]
    assert [(row["task"], row["targets"]) for row in rows] == [("length", 3), ("infill", 4)]
    run(command(folder, out, "infill", more=["--samples", "2"]))
    assert len(list((out / "texts").glob("run-infill-*"))) == 2
    assert all((out / "texts" / file.name).exists() for file in before)


def test_it_goes_on_where_it_stopped_before_the_first_row(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sample = tmp_path / "out", Samples.sample

    def stopped(samples: Samples, number: int) -> TargetSamples:
        if number == 1:
            raise KeyboardInterrupt
        return sample(samples, number)

    monkeypatch.setattr(Samples, "sample", stopped)
    assert main(command(folder, out, "length")) == 130
    (path,) = (out / "texts").glob("run-unguided-*")
    (kept,) = texts_of(path)
    monkeypatch.undo()
    assert run(command(folder, out, "length")) == (out / "table.txt").read_text()
    assert texts_of(path)[0] == kept


def test_a_task_that_was_edited_is_written_anew(folder: Path, tmp_path: Path) -> None:
    targets, out = tmp_path / "mine.jsonl", tmp_path / "out"
    words = ["evaluate", str(folder / "run"), "--judge", str(folder / "judge"), "--out", str(out)]
    words += ["--controls", str(targets), "--samples", "2", "--sampling.steps", "2"]
    targets.write_text('{"controls": ["Length(9)"]}\n{"controls": ["Length(10)"]}\n')
    run(words)
    (path,) = (out / "texts").glob("run-*-mine-*")
    first = texts_of(path)
    targets.write_text('{"controls": ["Length(9)"]}\n{"controls": ["Length(11)"]}\n')
    run(words)
    second = texts_of(path)
    assert second[0] == first[0] and second[1]["controls"] == ["Length(11)"] != first[1]["controls"]
    (row,) = json.loads((out / "control.json").read_text())["rows"]
    assert REFERENCE not in row["perplexity"] and row["metrics"]["length, exact"][STEERED]["mean"] == 1


@dataclass(frozen=True)
class Unheard(Task, name="unheard"):
    """A word that the model has, or one that no model has."""

    def target(self, row: CorpusRow, draw: random.Random, reader: Reader) -> Target:
        return Target((Words(draw.choice(["food", "zyzzyva"])),), row["text"])


def test_a_target_that_cannot_be_satisfied_counts_as_missed(folder: Path, tmp_path: Path) -> None:
    task = {"task": "unheard", "corpus": "restaurants", "targets": 12, "samples": 1}
    (tmp_path / "unheard.yaml").write_text(yaml.safe_dump({**task, "sampling": {"steps": 2}}))
    report = evaluate_control(folder / "judge", [folder / "run"], read_tasks(tmp_path / "unheard.yaml"), quiet=True)
    (row,) = report.rows
    assert 0 < len(row.refused) < 12
    assert row.metrics["all controls"][STEERED].mean == pytest.approx(1 - len(row.refused) / 12)
    assert row.corpus_metrics["accepted"][REFERENCE].mean == 1
    assert report == build(ControlReport, {k: v for k, v in report.plain().items() if k != "machine"})


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--count", "3"], "--count: does not go with --controls"),
        (["--strengths", "-1"], "strengths: expected 0 or more"),
        (["--samples", "0"], "samples: expected at least 1, got 0"),
        (["--targets-count", "2000"], "targets: expected at most"),
        (["--sampling.guidnace", "adagrad"], "there is no such setting; did you mean 'guidance'?"),
        (["--sampling.steps", "100000"], "steps: expected 1 to"),
        (["--task.fields=[fod]"], "targets: expected at most 0"),
        (["--evaluations", "2", "4"], "--evaluations: expected one number with --controls, got 2 4"),
        (["--evaluations", "4", "--sampling.passes", "1"], "passes: evaluations decides steps, passes and sweeps"),
        (["--controls", "FOLDER/food.yaml"], "two tasks are called 'food'"),
        (["--controls", "FOLDER/none.yaml"], "none.yaml: there is no such file"),
        (["--controls", "FOLDER/wrong.jsonl"], 'wrong.jsonl, line 2: Attribute("fod", "Thai"): no field of'),
    ],
)
def test_a_bad_request_is_one_sentence_and_writes_nothing(
    more: list[str], sentence: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "wrong.jsonl").write_text('{"controls": ["Length(5)"]}\n{"controls": ["fod=Thai"]}')
    words = [word.replace("FOLDER", str(folder)) for word in more]
    assert sentence in refused(command(folder, tmp_path / "out", "food", more=words), capsys)
    assert not (tmp_path / "out").exists()


def test_an_autoregressive_model_cannot_be_steered(folder: Path) -> None:
    with pytest.raises(UserError, match="a llama model takes no controls"):
        evaluate_control(folder / "judge", [folder / "judge"], read_tasks(folder / "length.yaml"), ControlConfig(), quiet=True)
