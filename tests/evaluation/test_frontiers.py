"""``evaluate --references`` at several guidance scales and temperatures: rows, their labels, and the figure."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from tiny_conditions import trained

from diffusionlm.cli import main
from diffusionlm.evaluation.frontiers import frontier_figure, frontiers
from diffusionlm.evaluation.reference_report import ReferenceReport, ReferenceRow
from diffusionlm.evaluation.references import Figure


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    trained(folder, "source")
    rows = [{"source": "ant bee", "target": ["bee ant", "a bee"]}, {"source": "cat", "target": "cat"}]
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluated(folder: Path, out: Path, *more: str, models: tuple[str, ...] = ("source",)) -> dict[str, Any]:
    paths = [str(folder / name) for name in models]
    command = ["evaluate", *paths, "--references", str(folder / "r.jsonl"), "--out", str(out), "--no-ter", *more]
    assert main(command) == 0
    found: dict[str, Any] = json.loads((out / "references.json").read_text())
    return found


def of_models(report: dict[str, Any]) -> dict[str, tuple[float, float]]:
    rows = [row for row in report["rows"] if "sampling" in row["settings"]]
    return {row["system"]: tuple(row["settings"]["sampling"][name] for name in ("cfg", "temperature")) for row in rows}


def test_there_is_a_row_for_each_scale_which_one_call_or_several_make(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    alone = evaluated(folder, out, "--sampling.cfg", "1.5")["rows"]
    assert not (out / "frontier.svg").exists()  # one point is no frontier
    capsys.readouterr()
    found = evaluated(folder, out, "--cfg", "1", "1.5", "2", "1.0")
    assert "2 of 4 rows are in the report already" in capsys.readouterr().err
    assert of_models(found) == {"source (cfg 1.5)": (1.5, 1), "source (cfg 1)": (1, 1), "source (cfg 2)": (2, 1)}
    assert found["rows"][:2] == alone
    evaluations = {row["system"]: row["cost"]["evaluations"] for row in found["rows"] if row["cost"]}
    assert evaluations == {"source (cfg 1)": 4, "source (cfg 1.5)": 8, "source (cfg 2)": 8}
    drawn = (out / "frontier.svg").read_bytes()
    assert drawn.startswith(b"<?xml") and b"<svg" in drawn
    evaluated(folder, out, "--cfg", "2")
    assert (out / "frontier.svg").read_bytes() == drawn  # the same figure is the same file


def test_temperatures_are_a_second_list(folder: Path, tmp_path: Path) -> None:
    found = evaluated(folder, tmp_path / "out", "--cfg", "1", "2", "--temperatures", "0.5", "1", "--sampling.steps", "2")
    assert of_models(found) == {
        f"source (steps 2, cfg {cfg}, temperature {temperature})": (cfg, float(temperature))
        for cfg in (1, 2)
        for temperature in ("0.5", "1")
    }


def test_models_of_one_name_keep_all_their_rows(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "source", folder / "other" / "source")
    found = evaluated(folder, tmp_path / "out", "--cfg", "1", "2", models=("source", "other/source"))
    other = folder / "other" / "source"
    assert {*of_models(found)} == {"source (cfg 1)", "source (cfg 2)", f"{other} (cfg 1)", f"{other} (cfg 2)"}
    assert found["systems"][f"{other} (cfg 2)"]["frontier"] == str(other)


def test_without_matplotlib_only_the_figure_is_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as an import finds it where it is not installed
    evaluated(folder, tmp_path / "out", "--cfg", "1", "2")
    assert "no figure: matplotlib is not installed" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["references.json", "table.txt", "texts"]


# The points


def report_of(*points: tuple[str, float, float, float], count: int = 3) -> ReferenceReport:
    """Return a report of rows (model, cfg, temperature, BLEU)."""
    report = ReferenceReport({})
    for model, cfg, temperature, bleu in points:
        system = f"{model} (cfg {cfg}, temperature {temperature})"
        report.systems[system] = {"frontier": model}
        figures = {"BLEU": Figure(bleu, 1.0), "distinct-2": Figure(100 - bleu, 2.0), "slots added": Figure(cfg, 0.5)}
        figures |= {"slots missing or wrong": Figure(10 / cfg, 0.25), "distinct outputs of all sources": Figure(90.0)}
        settings = {"sampling": {"cfg": cfg, "temperature": temperature, "steps": 4}, "count": count}
        report.rows.append(ReferenceRow(system, "", settings, 2, 2 * count, figures, {}, {}))
    return report


def test_a_frontier_joins_the_scales_of_one_model_at_one_temperature() -> None:
    points = [("a", 2.0, 1.0, 30.0), ("a", 1.0, 1.0, 20.0), ("a", 1.0, 0.5, 25.0), ("a", 3.0, 0.5, 10.0), ("b", 1.0, 1.0, 5.0)]
    lines = frontiers(report_of(*points))
    assert [line.label for line in lines] == ["a, temperature 0.5", "a, temperature 1"]
    assert lines[1].trade_off("distinct-2") == [(80.0, 20.0, 1.0, "1"), (70.0, 30.0, 1.0, "2")]
    assert lines[1].points("slots missing or wrong") == [(1.0, 10.0, 0.25, ""), (2.0, 5.0, 0.25, "")]
    assert lines[1].points("slots wrong") == []
    (line,) = frontiers(report_of(("a", 1.0, 0.5, 30.0), ("a", 1.0, 1.0, 20.0), ("b", 2.0, 1.0, 20.0)))
    assert (line.label, line.across) == ("a", "temperature")
    assert frontiers(report_of(("a", 1.0, 1.0, 30.0), ("b", 2.0, 1.0, 20.0))) == []


def test_rows_of_other_settings_are_on_no_line_together() -> None:
    report = report_of(("a", 1.0, 1.0, 20.0), ("a", 2.0, 1.0, 30.0))
    assert len(frontiers(report)) == 1
    report.rows[1] = replace(report.rows[1], settings={**report.rows[1].settings, "count": 7})
    assert frontiers(report) == []


@pytest.mark.parametrize("count", [1, 3])
def test_the_figure_shows_quality_against_variety_and_slot_errors_against_the_scale(
    count: int,
) -> None:
    figure = frontier_figure(report_of(("a", 1.0, 1.0, 20.0), ("a", 2.0, 1.0, 30.0), count=count))
    assert figure is not None
    left, right = figure.axes
    assert left.get_ylabel() == "BLEU" and right.get_xlabel() == "guidance scale (cfg)"
    xs = [80, 70] if count > 1 else [90, 90]
    assert left.get_xlabel().startswith(
        "distinct-2 of the outputs of a source" if count > 1 else "distinct outputs of all sources"
    )
    assert numpy.asarray(left.lines[0].get_xydata()).tolist() == [[xs[0], 20], [xs[1], 30]]
    assert [text.get_text() for text in left.texts] == ["1", "2"]
    shown = [numpy.asarray(line.get_xydata()).tolist() for line in right.lines]
    assert [line for line in shown if line] == [[[1, 10], [2, 5]], [[1, 1], [2, 2]]]
    legend = right.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["missing or wrong", "added"]


def test_without_slots_there_is_one_panel_and_without_frontiers_no_figure() -> None:
    report = report_of(("a", 1.0, 1.0, 20.0), ("a", 2.0, 1.0, 30.0))
    for row in report.rows:
        del row.figures["slots missing or wrong"], row.figures["slots added"]
    figure = frontier_figure(report)
    assert figure is not None and len(figure.axes) == 1
    assert frontier_figure(report_of(("a", 1.0, 1.0, 20.0))) is None
