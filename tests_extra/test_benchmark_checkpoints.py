"""benchmarks/checkpoints.py: the losses it measures are those of the run, and samples are compared at one entropy."""

import json
from pathlib import Path

import checkpoints
import pytest
from tiny_runs import tiny_config

from diffusionlm.training.run import train


def test_the_checkpoints_of_a_run_are_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = {"steps": 6, "save_every": 2, "evaluate_every": 2, "evaluation_texts": 1000, "keep": 9}
    train(tiny_config(tmp_path, training=training), tmp_path / "run", write_samples=False, quiet=True)
    command = [str(tmp_path / "run"), "--texts", "4", "--results", str(tmp_path)]
    assert checkpoints.main(command) == 0
    result = json.loads((tmp_path / "checkpoints" / "run-4.json").read_text())
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    bounds = {row["step"]: row["eval_bound"] for row in logged if "eval_bound" in row}
    assert {row["step"]: row["losses"]["bound"] for row in result["checkpoints"]} == pytest.approx(bounds, rel=1e-5)
    assert len({*bounds.values()}) == 3
    printed = capsys.readouterr().out
    assert "rank correlation over 3 checkpoints" in printed and "with trigram perplexity" in printed
    assert checkpoints.main(command) == 0
    assert capsys.readouterr().out == printed  # from the saved result


def test_figures_are_taken_at_the_entropy_of_held_out_texts() -> None:
    row = {"points": [{"entropy": 5.0, "x": 10.0}, {"entropy": 4.0, "x": 6.0}]}
    assert [checkpoints.at_entropy(row, "x", entropy) for entropy in (4.25, 3.0, 9.0)] == [7.0, 6.0, 10.0]
    assert checkpoints.spearman([1.0, 2.0, 3.0], [5.0, 7.0, 6.0]) == pytest.approx(0.5)
