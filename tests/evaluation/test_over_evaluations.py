"""Evaluations over numbers of network evaluations: what is spent, what stands beside it, and where nothing is known."""

import json
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy
import pytest
from tiny_runs import tiny_config, tiny_plain

from diffusionlm.cli import main
from diffusionlm.config import UserError, build
from diffusionlm.evaluation.benchmark import EvaluationConfig, evaluate
from diffusionlm.evaluation.over_evaluations import at_evaluations, evaluations_figure, evaluations_lines
from diffusionlm.evaluation.report import EvaluationRow, Report, table
from diffusionlm.evaluation.text_metrics import Diversity
from diffusionlm.pipelines.cost import Cost
from diffusionlm.plots import apart, over_evaluations
from diffusionlm.training.run import RunConfig, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a diffusion run, a masked and a judge's run, all of the same texts."""
    folder = tmp_path_factory.mktemp("evaluations")
    small = {"layers": 1, "width": 16, "heads": 2}
    with redirect_stderr(StringIO()):
        train(tiny_config(folder), folder / "run", write_samples=False, quiet=True)
        causal = {**tiny_plain(folder), "model": {"name": "causal", **small}, "objective": "causal"}
        train(build(RunConfig, causal), folder / "judge", write_samples=False, quiet=True)
        masked = {**tiny_plain(folder, training={"steps": 2}, objective="masked"), "sampling": {"sampler": "maskgit"}}
        masked["model"] = {"name": "masked", "backbone": {"name": "transformer", **small}}
        train(build(RunConfig, masked), folder / "masked", write_samples=False, quiet=True)
    return folder


def row(evaluations: int, temperature: float, entropy: float, perplexity: float, copied: float) -> EvaluationRow:
    """Return a model's row with the figures that matter here."""
    measured = Diversity(10, entropy, 0.1, 0.2, 0.3, 50 + 10 * entropy, 1.0, copied, 12.0, 0.5)
    settings = {"sampling": {"steps": evaluations, "passes": 1, "sweeps": 0}, "dtype": "bf16"}
    return EvaluationRow(
        "one", "model", None, temperature, perplexity, 0.1, measured, {}, 1.0, {}, "", settings, evaluations=evaluations
    )


def test_figures_are_interpolated_at_the_entropy_of_the_reference_and_never_beyond() -> None:
    rows = [row(4, 0.8, 4.0, 2.0, 0.2), row(4, 1.0, 5.0, 8.0, 0.1)]
    found = at_evaluations(rows, 4.5)
    assert found.judge_perplexity == pytest.approx(4.0)  # log-linear: the geometric mean
    assert found.self_bleu == pytest.approx(95.0) and found.copied == pytest.approx(0.15) and found.unique == 1.0
    assert found.evaluations == 4 and found.entropies == (4.0, 5.0)
    beyond = at_evaluations(rows, 5.1)
    assert (beyond.judge_perplexity, beyond.self_bleu, beyond.copied) == (None, None, None)


def test_each_number_is_spent_shown_and_counted(folder: Path, tmp_path: Path) -> None:
    config = EvaluationConfig(count=4, temperatures=(0.5, 4.0), bound_texts=0, evaluations=(2, 8))
    models = [folder / "run", folder / "masked", folder / "judge"]
    report = evaluate(folder / "judge", models, config=config, out=tmp_path / "out", quiet=True)
    of = {name: [one for one in report.rows if one.system == name] for name in ("run", "masked", "judge")}
    for name in ("run", "masked"):
        assert [(one.evaluations, one.steps) for one in of[name]] == [(2, None)] * 2 + [(8, None)] * 2
        assert all(one.cost and one.evaluations and one.cost.per_candidate <= one.evaluations for one in of[name])
        assert max(one.cost.per_candidate for one in of[name] if one.cost) == 8
    assert [one.evaluations for one in of["judge"]] == [None, None]  # one token after the other
    labels = report.frontiers().keys()
    assert {"run, 2 evaluations", "run, 8 evaluations", "masked, 2 evaluations", "judge"} <= labels
    assert report.over_evaluations().keys() == {"run", "masked"}
    said = table(report)
    assert "Over numbers of evaluations, at the entropy of the reference texts (sampled in fp32)" in said
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [one["evaluations"] for one in saved["over_evaluations"]["run"]] == [2, 8]
    # Other numbers are added: rows of other evaluations, and those of a number of steps, are kept.
    more = EvaluationConfig(count=4, temperatures=(0.5, 4.0), bound_texts=0, evaluations=(4,))
    steps = EvaluationConfig(count=4, temperatures=(0.5,), bound_texts=0, steps=(3,))
    for settings in (more, steps):
        report = evaluate(folder / "judge", [folder / "run"], config=settings, out=tmp_path / "out", quiet=True)
    found = [(one.evaluations, one.steps) for one in report.rows if one.system == "run"]
    assert found == [(2, None)] * 2 + [(8, None)] * 2 + [(4, None)] * 2 + [(None, 3)]


def test_rows_of_the_version_before_are_rows_of_the_same_settings(folder: Path, tmp_path: Path) -> None:
    config = EvaluationConfig(count=4, temperatures=(0.5, 4.0), bound_texts=0, steps=(2,))
    report = evaluate(folder / "judge", [folder / "run"], config=config, out=tmp_path / "out", quiet=True)
    kept = [one for one in report.rows if one.system == "run"]
    path = tmp_path / "out" / "evaluation.json"
    plain = json.loads(path.read_text())
    for one in plain["rows"]:  # which had neither a number of evaluations nor a noise shift
        del one["evaluations"]
        one["settings"].get("sampling", {}).pop("noise_shift", None)
    del plain["over_evaluations"]
    path.write_text(json.dumps(plain))
    more = EvaluationConfig(count=4, temperatures=(1.0,), bound_texts=0, steps=(2,))
    report = evaluate(folder / "judge", [folder / "run"], config=more, out=tmp_path / "out", quiet=True)
    assert [one for one in report.rows if one.system == "run"][:2] == kept
    moved = evaluate(
        folder / "judge", [folder / "run"], config=more, out=tmp_path / "out", quiet=True, sampling=[("noise_shift", "2")]
    )
    assert [one.settings["sampling"].get("noise_shift") for one in moved.rows if one.kind == "model"] == [None] * 3 + [2.0]


def test_evaluations_that_are_not_spent_are_said() -> None:
    real = Diversity(10, 4.5, 0.1, 0.2, 0.3, 60.0, 1.0, 0.0, 12.0, 0.5)
    report = Report({"count": 10})
    report.systems = {"one": {}}
    found = [row(1, 0.8, 3.0, 9.0, 0.1), row(1, 1.0, 3.5, 9.0, 0.1), row(4, 0.8, 3.0, 9.0, 0.1), row(8, 0.8, 4.0, 9.0, 0.1)]
    spent = [replace(one, cost=Cost(3.0 * min(2, one.evaluations or 0), 3, 0.1, 1)) for one in found]
    report.rows = [EvaluationRow("reference text", "real", None, None, 3.0, 0.1, real, {}, 0.0, {}, "", {}), *spent]
    assert [*evaluations_lines(report)][2:] == [
        "  one, 1 evaluation: its temperatures have entropies of 3.000 to 3.500, which do not cover it",
        "  one, 4 evaluations (2 spent): its only temperature has an entropy of 3.000, another one",
        "  one, 8 evaluations (2 spent): its only temperature has an entropy of 4.000, another one",
    ]
    assert [*report.frontiers()] == ["one, 1 evaluation", "one, 4 evaluations", "one, 8 evaluations"]


def test_labels_of_the_figure_neither_touch_nor_hide_a_point() -> None:
    assert apart([8, 1, 2, 4]) == [1, 2, 4, 8]
    assert apart([1, 30, 31, 32]) == [1, 32]
    assert apart([7, 8]) == [7, 8] and apart([4]) == [4]
    lines = {"ppl": {"a run": [(7.0, 3.0), (8.0, 2.0)], "another": []}}
    figure = over_evaluations({"ppl": "perplexity"}, lines, {"ppl": 1.0}, "title")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a run", "reference texts"]
    assert figure.axes[0].get_legend() is None


def test_the_figure_has_what_is_covered_alone() -> None:
    real = Diversity(10, 4.5, 0.1, 0.2, 0.3, 60.0, 1.0, 0.0, 12.0, 0.5)
    report = Report({"count": 10})
    report.systems = {"one": {}}
    report.rows = [
        EvaluationRow("reference text", "real", None, None, 3.0, 0.1, real, {}, 0.0, {}, "", {}),
        *(row(n, t, e, p, 0.1) for n in (4, 8) for t, e, p in ((0.8, 4.0, 32.0 / n), (1.0, 5.0, 128.0 / n))),
        row(1, 0.8, 3.0, 9.0, 0.1),
    ]
    figure = evaluations_figure(report)
    assert figure is not None
    drawn = [[numpy.asarray(line.get_xydata()).tolist() for line in axes.lines] for axes in figure.axes]
    fluent, _, copies = drawn
    assert fluent[0] == [[4.0, pytest.approx(16.0)], [8.0, pytest.approx(8.0)]]
    assert [y for _, y in copies[0]] == [pytest.approx(10.0)] * 2
    assert [line[1][0][1] for line in drawn] == [3.0, 60.0, 0.0]  # of the reference texts
    report.rows = [one for one in report.rows if one.evaluations != 8]
    assert evaluations_figure(report) is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--evaluations", "4", "--steps", "4"], "evaluations: they decide the steps"),
        (["--evaluations", "0"], "evaluations: expected at least 1, got 0"),
        (["--evaluations", "4", "--sampling.sweeps", "2"], "sweeps: evaluations decides steps, passes and sweeps"),
        (["--evaluations", "1", "--sampling.noise_shift", "2"], "noise_shift: there is one step, whose start stays"),
        (["--steps", "1", "--sampling.noise_shift", "2"], "noise_shift: there is one step, whose start stays"),
        (["--evaluations", "4", "--sampling.sampler", "heun"], "the sampler 'heun' takes several evaluations in a step"),
    ],
)
def test_a_bad_number_is_one_sentence(
    folder: Path, tmp_path: Path, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", str(folder / "run"), "--judge", str(folder / "judge"), "--out", str(tmp_path / "out")]
    assert main([*given, "--count", "4", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and reason in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_without_steps_in_any_model_there_is_nothing_to_decide(folder: Path) -> None:
    config = EvaluationConfig(count=4, evaluations=(4,))
    with pytest.raises(UserError, match="evaluations: .* one token after the other"):
        evaluate(folder / "judge", [folder / "judge"], config=config, quiet=True)
