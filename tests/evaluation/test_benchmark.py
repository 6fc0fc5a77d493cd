import io
import json
import math
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import yaml
from tiny_runs import restaurant_texts, tiny_config, tiny_plain

from diffusionlm import plots
from diffusionlm.cli import main
from diffusionlm.config import build
from diffusionlm.data.corpora import Files
from diffusionlm.evaluation.benchmark import EvaluationConfig, evaluate
from diffusionlm.evaluation.judge import Judge, perplexity
from diffusionlm.evaluation.report import EvaluationRow, Report, table
from diffusionlm.evaluation.text_metrics import TrainingTexts, diversity, unigram_entropy
from diffusionlm.training.run import RunConfig, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a diffusion run, one that predicts vectors, a masked and a judge's run, all of the same texts."""
    folder = tmp_path_factory.mktemp("frontier")
    with redirect_stderr(io.StringIO()):
        train(tiny_config(folder), folder / "run", quiet=True)
        causal = {
            **tiny_plain(folder),
            "model": {"name": "causal", "layers": 1, "width": 16, "heads": 2},
            "objective": "causal",
        }
        train(build(RunConfig, causal), folder / "judge", quiet=True)
        vectors = {"prediction": "x0", "schedule": "sqrt", "self_conditioning": False}
        paper = tiny_config(folder, model=vectors, objective={"name": "regression"}, training={"steps": 2})
        train(paper, folder / "paper", write_samples=False, quiet=True)
        plain = tiny_plain(folder, training={"steps": 2}, objective="masked")
        masked = {
            **plain,
            "model": {"name": "masked", "backbone": {"name": "transformer", "layers": 1, "width": 16, "heads": 2}},
        }
        masked["sampling"] = {"sampler": "maskgit", "steps": 4}
        train(build(RunConfig, masked), folder / "masked", write_samples=False, quiet=True)
    return folder


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["evaluate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.strip().splitlines()) == 1, err
    return err


def run(arguments: list[str]) -> None:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert main(["evaluate", *arguments]) == 0


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    costs = [{**(row["cost"] or {}), "cpu_seconds": None, "seconds": None} for row in rows]
    return [{**row, "seconds": None, "cost": cost} for row, cost in zip(rows, costs, strict=True)]


SMALL = ["--count", "5", "--bound-texts", "2", "--temperatures", "0.8", "1.0", "--steps", "2", "3"]


def test_every_row_follows_from_its_texts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", str(folder / "run"), "--judge", str(folder / "judge"), "--out", str(out), *SMALL]) == 0
    said = capsys.readouterr()
    assert said.out == (out / "table.txt").read_text() and "text/s" in said.err
    found = json.loads((out / "evaluation.json").read_text())
    real, *rest = found["rows"]
    asked = [(row["system"], row["steps"], row["temperature"]) for row in rest]
    assert asked == [("judge LM", None, 0.8), ("judge LM", None, 1.0)] + [
        ("run", steps, t) for steps in (2, 3) for t in (0.8, 1.0)
    ]
    splits = Files(train=str(folder / "texts.txt")).load()
    held, training = splits["validation"]["text"][:], TrainingTexts(splits["train"]["text"][:])
    judge = Judge.load(folder / "judge")
    for row in found["rows"]:
        marks = [f"-{row['steps']}-steps" * bool(row["steps"]), f"-temperature-{row['temperature']}" * bool(row["temperature"])]
        path = out / "texts" / f"{row['system'].replace(' ', '-')}{''.join(marks)}.jsonl"
        texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
        assert len(texts) == 5 and row["metrics"] == {}  # files have no metrics of their own
        assert row["judge_perplexity"] == pytest.approx(perplexity(judge.score(texts)))
        assert row["diversity"] == pytest.approx(vars(diversity(texts, training)))
        assert sum(row["lengths"].values()) == 5
        if row is real:
            assert set(texts) <= set(held) and row["diversity"]["copied"] == 0
    assert found["at_real_entropy"].keys() == {"judge LM", "run, 2 steps", "run, 3 steps"}
    assert found["machine"]["torch"] and found["about"]["seed"] == 0
    assert found["systems"]["run"]["training_steps"] == 8
    for name in ("frontier.png", "lengths.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_the_likelihood_stands_beside_the_judges_on_the_same_texts(folder: Path, tmp_path: Path) -> None:
    config = EvaluationConfig(count=2, temperatures=(1.0,), bound_texts=4, strata=16)
    models = [folder / "run", folder / "masked", folder / "judge"]
    report = evaluate(folder / "judge", models, config=config, out=tmp_path / "out", quiet=True)
    bounded, in_turn, masked, shown, exact = report.likelihoods
    assert [one.orders for one in report.likelihoods] == [0, 8, 0, 8, 0]
    assert in_turn.nats_per_token != bounded.nats_per_token and in_turn.tokens == bounded.tokens
    assert in_turn.terms["prior"] == in_turn.terms["reconstruction"] == 0
    for one in (bounded, in_turn, masked, shown):
        assert sum(one.terms.values()) == pytest.approx(one.nats_per_token)
        assert set(one.terms) == {"prior", "reconstruction", "diffusion", "length"}
    assert not masked.exact and masked.estimate_error > 0 and masked.tokens == bounded.tokens
    said = table(report)
    assert f"  run, any-order bound, 8 orders: at most {in_turn.nats_per_token:.3f} ± " in said
    assert f"  masked: at most {masked.nats_per_token:.3f} ± " in said
    assert (
        f"    diffusion {masked.terms['diffusion']:.3f}, length {masked.terms['length']:.3f}; standard error of the estimate"
        in said
    )
    assert (bounded.exact, exact.exact, exact.terms, exact.estimate_error) == (False, True, {}, 0)
    # The judge as a model among others is as likely as itself, to the last digit, and by the same count.
    assert exact.nats_per_token == exact.judge_nats_per_token == pytest.approx(bounded.judge_nats_per_token)
    assert exact.difference_error == 0 < bounded.difference_error
    assert exact.tokens == bounded.tokens
    ratio = bounded.nats_per_token / bounded.bits_per_character
    assert exact.nats_per_token / exact.bits_per_character == pytest.approx(ratio)


def test_an_evaluation_goes_on_where_it_stopped(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, command = (
        tmp_path / "out",
        [str(folder / "run"), "--judge", str(folder / "judge"), "--out", str(tmp_path / "out"), *SMALL],
    )
    run(command)
    path = out / "evaluation.json"
    whole = json.loads(path.read_text())
    # As if it had been killed after the fourth row: the fifth text file is there, its row is not.
    path.write_text(json.dumps({**whole, "rows": whole["rows"][:4], "likelihoods": []}))
    before = {file: file.stat().st_mtime_ns for file in (out / "texts").iterdir()}
    assert main(["evaluate", *command]) == 0
    assert "4 of 7 rows are in the report already" in capsys.readouterr().err
    again = json.loads(path.read_text())
    assert without_time(again["rows"]) == without_time(whole["rows"])
    assert again["rows"][:4] == whole["rows"][:4] and again["likelihoods"] == whole["likelihoods"]
    kept = [file for file in before if file.stat().st_mtime_ns == before[file]]
    assert len(kept) == 4
    # A wider grid adds its rows; what is known stays.
    run([*command, "--temperatures", "0.9", "--steps", "3"])
    assert json.loads(path.read_text())["rows"][:7] == again["rows"]
    assert [(r["system"], r["temperature"]) for r in json.loads(path.read_text())["rows"][7:]] == [
        ("judge LM", 0.9),
        ("run", 0.9),
    ]
    assert "its count is 5, not 6" in refused([*command, "--count", "6"], capsys)


def test_a_frontier_is_of_one_manner_of_writing(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    defaults, out = tmp_path / "run" / "model" / "sampling.json", tmp_path / "out"
    asked = [str(tmp_path / "run"), "--judge", str(folder / "judge"), "--count", "5", "--no-bound", "--out", str(out)]

    def rows() -> list[tuple[str, float]]:
        found = json.loads((out / "evaluation.json").read_text())["rows"]
        return [(row["system"], row["temperature"]) for row in found if row["kind"] == "model"]

    run([*asked, "--steps", "2", "3", "--temperatures", "0.8", "0.9"])
    assert len(rows()) == 4
    run([*asked, "--steps", "2", "--temperatures", "0.8", "--dtype", "bf16"])
    assert rows()[4:] == [("run (dtype bf16)", 0.8)]
    plain = json.loads(defaults.read_text())
    defaults.write_text(json.dumps({**plain, "sweep_odds": plain["sweep_odds"] + 1}))
    run([*asked, "--steps", "2", "--temperatures", "0.8"])
    assert rows() == [("run", 0.8), ("run (dtype bf16)", 0.8)]


def test_a_folder_is_itself_with_a_slash_and_each_row_is_made_once(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["--count", "5", "--no-bound", "--temperatures", "0.8", "0.8", "--steps", "2", "2", "--out", str(out)]
    run([str(folder / "run"), "--judge", str(folder / "judge"), *asked])
    before = (out / "evaluation.json").read_text()
    assert [row["system"] for row in json.loads(before)["rows"]].count("run") == 1
    run([f"{folder / 'run'}/", "--judge", f"{folder / 'judge'}/", *asked])
    assert (out / "evaluation.json").read_text() == before


def test_a_model_trained_anew_is_judged_anew(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    config = EvaluationConfig(count=3, temperatures=(1.0,), steps=(2,), bound_texts=0)
    first = evaluate(folder / "judge", [tmp_path / "run"], config=config, out=tmp_path / "out", quiet=True)
    plain = json.loads((tmp_path / "run/model/config.json").read_text())
    plain["settings"]["schedule"]["location"] += 1
    (tmp_path / "run/model/config.json").write_text(json.dumps(plain))
    second = evaluate(folder / "judge", [tmp_path / "run"], config=config, out=tmp_path / "out", quiet=True)
    assert [row.system for row in second.rows] == ["reference text", "judge LM", "run"]
    assert second.rows[2].fingerprint != first.rows[2].fingerprint
    assert second.rows[:2] == first.rows[:2]


def test_several_models_each_as_far_as_it_has_steps_and_temperatures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [str(folder / name) for name in ("run", "paper", "judge")]
    assert "--out: expected a folder" in refused([*models, "--judge", models[2], *SMALL], capsys)
    run([*models, "--judge", models[2], "--out", str(tmp_path / "out"), *SMALL, "--sampling.sampler", "ddim"])
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]
    asked = [(row["system"], row["steps"], row["temperature"]) for row in rows if row["kind"] == "model"]
    assert asked == [
        *(("run (sampler ddim)", steps, t) for steps in (2, 3) for t in (0.8, 1.0)),
        *(("paper (sampler ddim)", steps, 1.0) for steps in (2, 3)),
        *(("judge (sampler ddim)", None, t) for t in (0.8, 1.0)),
    ]
    assert {row["settings"]["sampling"]["sampler"]["name"] for row in rows if row["kind"] == "model"} == {"ddim"}


def test_other_systems_texts_are_judged_alike(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, texts = tmp_path / "mine.jsonl", restaurant_texts(6, "test")
    mine.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "theirs.txt").write_text("\n".join([texts[0]] * 5))
    command = ["--texts", str(mine), "--texts", str(tmp_path / "theirs.txt"), "--judge", str(folder / "judge"), "--count", "5"]
    before = sorted(tmp_path.rglob("*"))
    assert main(["evaluate", *command, "--json"]) == 0
    real, *rows = json.loads(capsys.readouterr().out)["rows"]
    assert sorted(tmp_path.rglob("*")) == before  # without --out nothing is written
    first, second = rows[-2:]
    assert (first["system"], first["steps"], first["temperature"]) == ("mine.jsonl", None, None)
    assert first["judge_perplexity"] == pytest.approx(perplexity(Judge.load(folder / "judge").score(texts[:5])))
    assert first["diversity"]["entropy"] == unigram_entropy(texts[:5])
    assert second["diversity"]["unique"] == 0.2 and second["diversity"]["self_bleu"] == pytest.approx(100)
    assert real["diversity"]["texts"] == 5
    assert "expected 9 texts or more, got 6; say --count 6" in refused([*command, "--count", "9"], capsys)
    (tmp_path / "other").mkdir()
    same_name = tmp_path / "other" / "mine.jsonl"
    same_name.write_text(mine.read_text())
    assert main(["evaluate", *command[:2], "--texts", str(same_name), *command[4:], "--json"]) == 0
    assert [row["system"] for row in json.loads(capsys.readouterr().out)["rows"][-2:]] == ["mine.jsonl", str(same_name)]


def test_the_grammar_accepts_the_restaurants_corpus(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.txt").write_text("\n".join([*restaurant_texts(2, "train"), *restaurant_texts(1, "test"), "The is a."]))
    command = ["--texts", str(tmp_path / "texts.txt"), "--judge", str(folder / "judge"), "--count", "4"]
    assert main(["evaluate", *command, "--data.corpus", "restaurants", "--json"]) == 0
    real, *_, row = json.loads(capsys.readouterr().out)["rows"]
    assert real["metrics"] == {"accepted": 1, "new": 1}
    assert (row["metrics"]["accepted"], row["metrics"]["new"], row["diversity"]["copied"]) == (0.75, pytest.approx(1 / 3), 0.5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "expected a model folder, or --texts FILE"),
        (["RUN", "--count", "1"], "count: expected at least 2, got 1"),
        (["RUN", "--count", "5000"], "count: expected at most"),
        (["RUN", "--bound-texts", "1"], "bound_texts: expected at least 2"),
        (["RUN", "--count", "2", "--no-bound", "--split", "tests"], "split: this corpus has no split 'tests'"),
        (["RUN", "--temperatures", "warm"], "invalid float value: 'warm'"),
        (["RUN", "--temperatures", "0", "--count", "2", "--no-bound"], "temperatures: expected a positive number"),
        (["RUN", "--steps", "0", "--count", "2", "--no-bound"], "steps: expected at least 1, got 0"),
        (["RUN", "--steps", "100000", "--count", "2", "--no-bound"], "steps: expected 1 to 4096"),
        (["RUN", "--count", "2", "--no-bound", "--sampling.samplr", "ddim"], "there is no such setting"),
        (["RUN", "--count", "2", "--no-bound", "--training.steps", "7"], "--training.steps: expected sampling.NAME or"),
        (["RUN", "--count", "2", "--no-bound", "--device", "cudda"], "'cudda' cannot be used here"),
        (["RUN/nothing", "--count", "2", "--out", "OUT"], "expected a model folder"),
        (["RUN", "--count", "2", "--judge", "RUN"], "expected a causal language model"),
        (["--count", "2", "--texts", "RUN/none.txt"], "there is no such file"),
        (["RUN/model", "--count", "2", "--out", "RUN"], "expected an empty or new folder, or an evaluation's"),
    ],
)
def test_a_bad_request_is_one_sentence_and_writes_nothing(
    arguments: list[str], sentence: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    words = [word.replace("RUN", str(tmp_path / "run")).replace("OUT", str(tmp_path / "out")) for word in arguments]
    judge = [] if "--judge" in words else ["--judge", str(folder / "judge")]
    assert sentence in refused([*words, *judge], capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_run_the_corpus_has_to_be_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run", "judge"):
        shutil.copytree(folder / name / "model", tmp_path / name)
    command = [str(tmp_path / "run"), "--judge", str(tmp_path / "judge"), "--out", str(tmp_path / "out"), *SMALL, "--no-bound"]
    assert "say --data.corpus, or --config FILE" in refused(command, capsys)
    config = tmp_path / "config" / "mine.yaml"
    config.parent.mkdir()
    config.write_text(yaml.safe_dump({"data": {"corpus": str(folder / "texts.txt")}}))
    run([*command, "--config", str(config)])
    assert (tmp_path / "out" / "table.txt").exists()


def row(system: str, steps: int | None, temperature: float, entropy: float, judged: float) -> EvaluationRow:
    found = diversity(["a b c", "a b d"], TrainingTexts(["a b c"]))
    return EvaluationRow(
        system, "model", steps, temperature, judged, 0.1, replace(found, entropy=entropy), {}, 1.0, {3: 2}, "", {}
    )


def test_frontiers_are_compared_at_equal_steps_and_equal_entropy() -> None:
    report = Report({"judge": "j", "count": 2, "seed": 0, "split": "validation"})
    report.rows = [replace(row("reference text", None, 1.0, 4.5, 6.0), kind="real", temperature=None)]
    for system, steps, scale in (("one", 8, 1.0), ("one", 64, 2.0), ("two", 64, 4.0), ("peer", None, 8.0)):
        report.rows += [row(system, steps, t, 4 + t, scale * math.exp(t)) for t in (0.0, 1.0)]
    compared = {(one, other): c.ratio for one, other, c in report.comparisons()}
    assert compared == {
        ("two, 64 steps", "one, 64 steps"): pytest.approx(2),
        ("peer", "one, 8 steps"): pytest.approx(8),
        ("peer", "one, 64 steps"): pytest.approx(4),
        ("peer", "two, 64 steps"): pytest.approx(2),
    }
    assert report.plain()["at_real_entropy"]["two, 64 steps"] == pytest.approx(4 * math.exp(0.5))
    said = table(report)
    assert "two, 64 steps against one, 64 steps: 2.00 (entropy 4.00 to 5.00)" in said
    assert f"two, 64 steps: {4 * math.exp(0.5):.2f}" in said


def test_the_figure_shows_the_points_it_is_given() -> None:
    line, peer = (
        plots.Line("one", [(4.5, 6.0, 0.1, "1"), (4.0, 3.0, 0.2, "0.8")]),
        plots.Line("real", [(5.0, 7.0, 0.1, "")], peer=True),
    )
    (axes,) = plots.frontier([line, peer], "title").axes
    assert axes.get_yscale() == "log"
    drawn = [numpy.asarray(line.get_xydata()).tolist() for line in axes.lines]
    assert drawn == [[[4.0, 3.0], [4.5, 6.0]], [[5.0, 7.0]]]
    assert {text.get_text() for text in axes.texts} == {"1", "0.8", ""}
    (axes,) = plots.lengths({"training": {2: 1, 4: 3}, "one": {3: 5}}).axes
    assert [list(patch.get_data().values) for patch in axes.patches] == [[0, 0, 0.25, 0, 0.75], [0, 0, 0, 1]]  # type: ignore[attr-defined]


def test_without_matplotlib_only_the_figures_are_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as an import finds it where it is not installed
    command = [str(folder / "run"), "--judge", str(folder / "judge"), "--out", str(tmp_path / "out"), *SMALL, "--no-bound"]
    assert main(["evaluate", *command]) == 0
    assert "no figures: matplotlib is not installed" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["evaluation.json", "table.txt", "texts"]
    assert train(
        tiny_config(tmp_path, training={"steps": 2, "evaluate_every": 2}), tmp_path / "run", write_samples=False, quiet=True
    )
    assert not (tmp_path / "run" / "figures").exists()
