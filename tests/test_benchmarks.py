"""The scripts of benchmarks/: every row is a valid config, a row is measured once, and an interrupt keeps finished rows."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ablations
import attributes
import e2e
import embedded
import few_steps
import fillings
import measure
import pytest
import rank
from nltk.corpus.reader import PlaintextCorpusReader
from nltk.corpus.util import LazyCorpusLoader
from tiny_runs import TINY, restaurant_texts, tiny_config, tiny_plain

from diffusionlm.config import UserError, build, merge, to_plain
from diffusionlm.data.annotators import Annotation, Annotator
from diffusionlm.data.batches import encode
from diffusionlm.data.corpora import Corpus, to_dataset
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.pipelines.auto import pipeline_of
from diffusionlm.training.run import RunConfig, read_config, train

CONFIGS = {
    **{f"ablations, {row}": ablations.config_of(row, "folder") for row in ablations.ROWS},
    **{f"e2e, {row}": e2e.config_of(row, "folder") for row in e2e.ROWS},
    **{f"embedded, {row}": read_config([embedded.EMBEDDED], list(embedded.ROWS[row].items())) for row in embedded.ROWS},
}


@pytest.mark.parametrize("row", CONFIGS)
def test_every_row_is_a_config_that_can_be_trained_and_sampled(row: str) -> None:
    config = CONFIGS[row]
    texts = restaurant_texts(20)
    tokenizer = WordTokenizer().make(texts)
    model = config.model.make(tokenizer, encode(texts, tokenizer).ids, config.data.max_length)
    config.objective.build(model)
    pipeline_of(model)(model, tokenizer, config.sampling).check(config.sampling)


@pytest.mark.parametrize("rows", [ablations.ROWS, e2e.ROWS, embedded.ROWS], ids=["ablations", "e2e", "embedded"])
def test_no_two_rows_have_the_same_config_or_file_name(rows: dict[str, object]) -> None:
    name = next(name for name, module in sys.modules.items() if getattr(module, "ROWS", None) is rows)
    plain = [json.dumps(to_plain(config)) for row, config in CONFIGS.items() if row.startswith(f"{name}, ")]
    assert len(set(plain)) == len(plain) == len(rows)
    assert len({measure.file_name(row) for row in rows}) == len(rows)


def test_the_compared_recipes_have_the_same_network_and_data() -> None:
    ours, masked, paper = (to_plain(e2e.config_of(row, "folder")) for row in e2e.ROWS)
    assert ours["model"]["backbone"] == masked["model"]["backbone"] == paper["model"]["backbone"]
    assert ours["data"] == masked["data"] == paper["data"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a corpus in E2E's format and the run of a judge LM."""
    folder = tmp_path_factory.mktemp("e2e")
    texts = restaurant_texts(240, "train")
    for name, part in (("trainset", texts[:200]), ("devset", texts[200:230]), ("testset_w_refs", texts[230:])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("mr", "ref"), *(("name[X], food[Y]", text) for text in part)])
    judge = {
        **tiny_plain(folder, training={"steps": 2}),
        "data": {"corpus": {"name": "e2e", "folder": str(folder)}, "tokenizer": {"name": "words", "min_count": 11}},
        "model": {"name": "causal", "layers": 1, "width": 16, "heads": 2},
        "objective": "causal",
    }
    train(build(RunConfig, judge), folder / "judge", write_samples=False, quiet=True)
    return folder


def arguments(folder: Path, tmp_path: Path, *rows: str) -> list[str]:
    options = ["--steps", "2", "--texts", "3", "--bound-texts", "2", "--jobs", "0"]
    options += ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    return ["--folder", str(folder), "--judge", str(folder / "judge"), *options, *rows]


def test_a_row_is_measured_once_and_printed_in_the_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablations.main(arguments(folder, tmp_path, "default")) == 0
    path = tmp_path / "results" / "ablations" / "default-2-steps.json"
    before, result = path.stat().st_mtime_ns, json.loads(path.read_text())
    assert (result["row"], result["changes"], result["training_steps"], result["seed"]) == ("default", {}, 2, 0)
    assert [point["temperature"] for point in result["points"]] == [1.1, 1.2, 1.3, 1.4]
    assert all(point["steps"] == 13 and point["judge_perplexity"] > 1 for point in result["points"])
    assert result["training_tokens"] > 1000 and result["training_processor_seconds"] > 0
    assert [(one["orders"], one["texts"]) for one in result["likelihoods"]] == [(0, 2), (8, 2)]
    assert result["machine"]["threads"] == 1
    assert "| default | 2 | 0.00 M |" in capsys.readouterr().out
    other = {**result, "row": "dimension 16", "points": [{**p, "entropy": p["entropy"] + 9} for p in result["points"]]}
    (path.parent / "dimension-16-2-steps.json").write_text(json.dumps({**other, "likelihoods": []}))
    assert ablations.main(arguments(folder, tmp_path, "default", "dimension 16")) == 0
    output = capsys.readouterr()
    assert "2 of 2 rows are already measured" in output.err and path.stat().st_mtime_ns == before
    *_, first, second = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.out.splitlines()]
    point = result["points"][2]
    assert first[0] == "default" and first[10] == f"{point['judge_perplexity']:.2f}"  # the reference entropy is its own
    assert first[8] == f"{point['judge_perplexity']:.2f} ({point['entropy']:.3f})"
    assert second[0] == "dimension 16" and (second[10], *second[13:]) == ("-", "-", "-")


def test_the_recipes_are_trained_and_evaluated_in_one_report(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(e2e, "EVALUATIONS", (2, 6))  # with two self-conditioning passes per step
    monkeypatch.setattr(e2e, "TEMPERATURES", (1.0,))
    assert e2e.main(arguments(folder, tmp_path, "ours", "masked")) == 0
    table = capsys.readouterr().out
    out = tmp_path / "results" / "e2e-2-steps"
    assert table == (out / "table.txt").read_text()
    report = json.loads((out / "evaluation.json").read_text())
    settings = {(row["system"], row["steps"]) for row in report["rows"] if row["kind"] == "model"}
    assert settings == {("ours", 16), ("masked", 32), ("ours", 1), ("ours", 3)}
    assert [one["system"] for one in report["likelihoods"]] == ["ours", "ours", "masked", "masked"]
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in report["rows"]]
    assert e2e.main(arguments(folder, tmp_path, "ours", "masked")) == 0
    again = json.loads((out / "evaluation.json").read_text())["rows"]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in again] == rows
    assert capsys.readouterr().out == table


def test_time_only_saves_the_number_with_steps_that_a_later_run_trains(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "seconds_per_step", lambda config: 0.17)
    command = arguments(folder, tmp_path, "default")
    at = command.index("--steps")
    command[at : at + 2] = ["--minutes", "0.01"]
    run = tmp_path / "runs" / "ablations" / "0.01-minutes" / "default"
    assert ablations.main([*command, "--time-only"]) == 0
    assert [path.name for path in run.iterdir()] == ["config.yaml"] and not (tmp_path / "results").exists()
    assert ablations.main(command) == 0
    result = json.loads((tmp_path / "results" / "ablations" / "default-0.01-minutes.json").read_text())
    assert result["training_steps"] == 3


def test_training_on_a_gpu_requires_a_known_number_with_steps(folder: Path, tmp_path: Path) -> None:
    options = Namespace(steps=None, minutes=1.0, device="cuda", parallel_icm=False)
    with pytest.raises(UserError, match="unknown number of steps; first run with --time-only --device cpu"):
        measure.train_or_resume(ablations.config_of("default", str(folder)), tmp_path / "run", options)


def test_invalid_options_are_rejected_before_training(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = arguments(folder, tmp_path, "default")
    wrong[wrong.index("--judge") + 1] = str(tmp_path / "none")
    assert ablations.main(wrong) == 2
    assert "expected a model folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ablations.main([*arguments(folder, tmp_path), "no such row"])
    assert "unknown row 'no such row'; choose from" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ablations.main([*arguments(folder, tmp_path), "--jobs", "-1"])
    assert "--jobs: expected 0 or more, got -1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_nltk_corpus_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    corpus = LazyCorpusLoader("no_such_corpus", PlaintextCorpusReader, ".*")

    def read() -> list[str]:
        return list(corpus.fileids())

    assert measure.exit_status(read, lambda: None) == 2
    assert capsys.readouterr().err.startswith("NLTK_DATA: NLTK's no_such_corpus is neither there nor in NLTK's default folders")
    rows: dict[str, list[str]] = {}
    with pytest.raises(KeyError):
        measure.exit_status(lambda: rows["else"], lambda: None)


def test_fillings_of_a_gap_and_their_share_of_distinct_ones() -> None:
    texts = [text.split() for text in ("a b c d", "a x y d", "a b c d", "d a")]
    assert fillings.fillings(texts, ["a"], ["d"]) == {"b c": 2, "x y": 1}
    assert fillings.fillings(texts, [], ["c"]) == {"a b": 2} and fillings.fillings(texts, ["c"], []) == {"d": 2}
    assert fillings.context("The {2} is near {} .", 1) == (["The"], ["is"])
    assert fillings.distinct_share(Counter({"b c": 9}), 8) == 1 / 8
    assert fillings.distinct_share(Counter({"b c": 5, "x y": 5}), 2) == pytest.approx(0.75, abs=0.03)


def test_the_number_with_steps_is_computed_from_minutes_of_cpu_time(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    assert measure.with_minutes(config, 1e-9).training.steps == 1
    fixed = measure.with_steps(config, 1234).training
    assert (fixed.steps, fixed.log_every, fixed.save_every, fixed.threads) == (1200, 50, 300, 1)
    assert measure.with_steps(config, 7).training.log_every == 7


def test_failed_processes_are_returned_by_name(tmp_path: Path) -> None:
    programs = {"good, row": "import os; print(os.environ['OMP_NUM_THREADS'])", "bad": "raise SystemExit('wrong')"}
    commands = {name: [sys.executable, "-c", program] for name, program in programs.items()}
    assert measure.in_processes(commands, 2, tmp_path / "logs") == ["bad"]
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert logs == {"good-row.log": "1\n", "bad.log": "wrong\n"}


def test_an_interrupt_waits_for_running_processes_and_starts_no_others(tmp_path: Path) -> None:
    """The first program sends its parent SIGINT, as Ctrl-C does, and then finishes its own work."""
    program = f"import os, signal, pathlib; os.kill({os.getpid()}, signal.SIGINT); pathlib.Path('{{}}').write_text('complete')"
    paths = [tmp_path / f"{number}.txt" for number in range(9)]
    commands = {path.stem: [sys.executable, "-c", program.format(path)] for path in paths}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            measure.in_processes(commands, 1, tmp_path / "logs")
    finally:
        signal.signal(signal.SIGINT, before)
    assert paths[0].read_text() == "complete" and not paths[-1].exists()


@dataclass(frozen=True)
class Prices(Corpus, name="prices-of-a-test"):
    """Texts that state one of two prices, and their annotator."""

    def load(self) -> dict[str, Any]:
        rows = [
            {"text": f"the {place} is {price}", "attributes": {"price": price}}
            for place in ("pub", "inn", "old pub", "new inn", "grill")
            for price in ("cheap", "dear")
        ]
        return {"train": to_dataset(rows * 4), "validation": to_dataset(rows[:4])}

    def annotator(self) -> Annotator:
        return PriceWords()


@dataclass(frozen=True)
class PriceWords(Annotator, name="price-words-of-a-test"):
    """The price is the last word."""

    def annotate(self, text: str) -> Annotation | None:
        words = tuple(text.split())
        return Annotation(words, attributes={"price": words[-1]}) if words and words[-1] in ("cheap", "dear") else None


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the run of a tiny model, and that of a judge, on ``Prices``."""
    folder = tmp_path_factory.mktemp("prices")
    plain = merge(TINY, {"data": {"corpus": "prices-of-a-test"}, "training": {"steps": 4}})
    judge = {**plain, "model": {"name": "causal", "layers": 1, "width": 16, "heads": 2}, "objective": "causal"}
    judge["sampling"] = {"passes": 1, "sweeps": 0}
    for name, each in {"base": plain, "judge": judge}.items():
        assert train(build(RunConfig, each), folder / name, write_samples=False, quiet=True)
    return folder


def of_prices(priced: Path, tmp_path: Path, *more: str) -> list[str]:
    given = ["--base", str(priced / "base"), "--judge", str(priced / "judge"), "--out", str(tmp_path / "runs")]
    return [*given, "--results", str(tmp_path / "results"), "--fields", "price", "--min-count", "2", *more]


def test_attributes_are_controlled_in_every_way_and_measured_once(
    priced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = of_prices(priced, tmp_path, "--samples", "2", "--scales", "1", "2")
    assert attributes.main(command) == 0
    printed = capsys.readouterr().out
    commands = [shlex.split(line) for line in printed.splitlines() if line.startswith("diffusionlm train")]
    outs = [Path(words[words.index("--out") + 1]).name for words in commands]
    assert outs == ["attributes", "labels", "branch", "price-cheap", "price-dear"]
    ways = ["unconditional", "classifiers", "labels, cfg 1", "labels, cfg 2", "control branch, cfg 1", "control branch, cfg 2"]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    assert [row[0] for row in table[2:]] == [*ways, "LoRA"]
    for way in [*ways, "LoRA"]:
        path = tmp_path / "results" / f"{measure.file_name(way)}.json"
        result = json.loads(path.read_text())
        assert {*result["samples"]} == {"price=cheap", "price=dear"} and result["trained_parameters"] > 0
        hits = [text.endswith(name.partition("=")[2]) for name, texts in result["samples"].items() for text in texts]
        assert len(hits) == 4 and result["success"] == sum(hits) / 4 and result["perplexity"] > 1
    before = path.stat().st_mtime_ns
    assert attributes.main(command) == 0
    assert path.stat().st_mtime_ns == before and capsys.readouterr().out.endswith(printed[printed.index("|") :])
    assert attributes.main([*command, "--seed", "1"]) == 2
    assert "unconditional.json: measured with seed 0, not 1; choose another --results" in capsys.readouterr().err


def test_outputs_that_were_sampled_already_are_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, other = "name[Aromi], food[Chinese]", "name[Zizzi]"
    texts = ["Aromi is a pub.", "Aromi is a pub today.", "Aromi is a pub.", "Aromi serves Chinese food."]
    rows = [*({"source": source, "text": text} for text in texts), {"source": other, "text": "Zizzi is here."}]
    (tmp_path / "outputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rank.main([str(tmp_path / "outputs.jsonl"), "--out", str(tmp_path / "best")]) == 0
    kept = {
        name: [json.loads(line)["text"] for line in (tmp_path / f"best-{name}.jsonl").read_text().splitlines()]
        for name in ("mbr", "slots")
    }
    assert kept == {"mbr": [texts[0], "Zizzi is here."], "slots": [texts[3], "Zizzi is here."]}
    assert "2 of 5 outputs" in capsys.readouterr().out
    (tmp_path / "outputs.jsonl").write_text('{"text": "no source"}\n')
    assert rank.main([str(tmp_path / "outputs.jsonl"), "--out", str(tmp_path / "best")]) == 2
    assert "line 1: expected a source and a text, got text" in capsys.readouterr().err


def test_students_of_one_teacher_share_a_table_and_a_figure(
    priced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        str(priced / "base"),
        "consistency",
        "flow map",
        "--judge",
        str(priced / "judge"),
        "--made-for",
        "2",
        "--steps",
        "2",
    ]
    command += ["--texts", "4", "--evaluations", "2", "4", "8", "--temperatures", "0.5", "5", "--learning-rate", "0.001"]
    command += ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert few_steps.main(command) == 0
    report = json.loads((tmp_path / "results" / "evaluation.json").read_text())
    found = {name: [one["evaluations"] for one in each] for name, each in report["over_evaluations"].items()}
    assert found == {"base": [2, 4, 8], "consistency": [2, 4], "flow-map": [2, 4]}
    trained = read_config([tmp_path / "runs" / "flow-map" / "config.yaml"])
    assert trained.training.steps == 2 and trained.model.distilled_for == 2  # type: ignore[attr-defined]
    assert trained.training.optimizer.learning_rate == 0.001  # type: ignore[attr-defined]
    before = capsys.readouterr().out
    assert few_steps.main(command) == 0 and capsys.readouterr().out == before  # nothing is trained or sampled again


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--fields", "prise"], "--fields: the corpus has no attribute 'prise'; did you mean 'price'?"),
        (["--min-count", "99"], "--fields: no value of 'price' is stated by 99 training texts or more (--min-count)"),
        (["--labelled", "BASE"], "is not conditioned on 'price'; it reads no condition"),
    ],
)
def test_attributes_that_cannot_be_compared_are_refused_before_training(
    priced: Path, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(priced / "base") if word == "BASE" else word for word in more]
    assert attributes.main(of_prices(priced, tmp_path, *given)) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "runs").exists()
