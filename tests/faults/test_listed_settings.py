"""Lists of guidance scales and temperatures of ``evaluate --references`` that a model cannot have: one sentence, nothing written."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from tiny_conditions import SOURCE, trained
from tiny_runs import TINY

from diffusionlm.cli import main
from diffusionlm.config import UserError, build, merge
from diffusionlm.evaluation.reference_report import evaluate_references
from diffusionlm.training.run import RunConfig, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that saw the null condition, one that never did, one that predicts vectors, and one without any."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("source", "plain"):
        trained(folder, name)
    base = merge(TINY, {"data": {"corpus": str(folder / "pairs.jsonl"), "max_length": 8}, "training": {"steps": 1}})
    models: dict[str, dict[str, Any]] = {
        "undropped": {"model": {"condition": {**SOURCE, "drop": 0.0}}},
        "vectors": {
            "model": {"condition": SOURCE, "prediction": "x0", "schedule": "sqrt", "self_conditioning": False},
            "objective": {"name": "regression"},
        },
    }
    for name, changes in models.items():
        train(build(RunConfig, merge(base, changes)), folder / name, write_samples=False, quiet=True)
    (folder / "r.jsonl").write_text(json.dumps({"source": "ant bee", "target": "bee ant"}) + "\n")
    (folder / "t.txt").write_text("bee ant\n")
    return folder


REFUSED = {
    "undropped --cfg 1 2": "cfg: this model was trained without dropping its condition (drop: 0); leave it at 1",
    "source undropped --cfg 1 2": "cfg: this model was trained without dropping its condition (drop: 0); leave it at 1",
    "plain --cfg 1 2": "plain: expected a model that is conditioned on a source text",
    "vectors --temperatures 0.5 1": "temperature: this model predicts x0, not logits; leave it at 1",
    "source --cfg 1 -2": "sampling.cfg: expected 0 to 10000, got -2.0",
    "source --cfg nan": "sampling.cfg: expected a finite number, got",
    "source --cfg much": "argument --cfg: invalid float value: 'much'",
    "source --cfg": "argument --cfg: expected at least one argument",
    "source --temperatures 0": "sampling.temperature: expected a positive number, got 0.0",
    "source --cfg 1 2 --sampling.cfg 3": "sampling.cfg: expected one value or a list of values, got both; leave one out",
    "source --temperatures 1 --sampling.temperature 1": "sampling.temperature: expected one value or a list of values, got both",
    "--texts t.txt --cfg 1 2": "--cfg: there is no model to sample from, so this setting has no effect; leave it out",
    "--texts t.txt --temperatures 1 2": "--temperatures: there is no model to sample from",
}


@pytest.mark.parametrize("command", REFUSED)
def test_a_list_that_does_not_fit_is_refused_before_any_sampling(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert main(["evaluate", *shlex.split(command), "--references", "r.jsonl", "--out", "e", "--no-ter"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"diffusionlm: {REFUSED[command]}") and said.err.count("\n") == 1 and said.out == ""
    assert not Path("e").exists()


@pytest.mark.parametrize("rest", ["--judge source", "--judge source --controls r.jsonl"])
def test_scales_are_listed_for_references_alone(
    rest: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert main(["evaluate", "source", "--cfg", "1", "2", *rest.split()]) == 2
    assert capsys.readouterr().err == "diffusionlm: --cfg: needs --references FILE\n"


def test_no_guidance_is_a_scale_that_every_model_has(folder: Path) -> None:
    report = evaluate_references(folder / "r.jsonl", models=[folder / "undropped"], cfg=[1.0], ter=False, quiet=True)
    assert report.rows[-1].system == "undropped (cfg 1)"
    with pytest.raises(UserError, match=r"^cfg: this model was trained without dropping"):
        evaluate_references(folder / "r.jsonl", models=[folder / "undropped"], cfg=[1.0, 1.5], ter=False, quiet=True)
