"""A run that is refused before it has recorded anything leaves no folder and no file of its own, and none of the user's is lost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import tiny_config, tiny_plain
from torch import nn

from diffusionlm import UserError
from diffusionlm.cli import main
from diffusionlm.training.optimizers import AdamW
from diffusionlm.training.run import train

QUICK = {"training": {"steps": 4, "evaluate_every": 4, "sample_every": 4, "save_every": 4}}


@dataclass(frozen=True)
class Refusing(AdamW):
    """An optimizer that finds its settings impossible once it sees the weights: after the run has claimed its folder."""

    def build(self, module: nn.Module) -> Any:
        raise UserError("optimizer: expected other weights")


def refused(folder: Path, **changes: Any) -> None:
    config = tiny_config(folder, **QUICK)
    config = replace(config, training=replace(config.training, optimizer=Refusing()))
    with pytest.raises(UserError, match="expected other weights"):
        train(config, folder / "runs" / "new" / "run", quiet=True)


def test_a_run_that_fails_before_its_first_step_leaves_no_folder_nor_those_above_it(tmp_path: Path) -> None:
    refused(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_what_was_there_before_stays_and_the_corrected_run_begins_in_the_same_folder(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "new" / "run"
    run.mkdir(parents=True)
    (run / "train.log").write_text("started\n")
    refused(tmp_path)
    assert [path.name for path in run.iterdir()] == ["train.log"]
    assert train(tiny_config(tmp_path, **QUICK), run, quiet=True)
    assert (run / "train.log").read_text() == "started\n"


def test_a_run_that_has_recorded_something_keeps_it(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "new" / "run"
    config = tiny_config(tmp_path, **QUICK)
    config = replace(config, training=replace(config.training, optimizer=Refusing()))
    good = tiny_config(tmp_path, **QUICK)
    assert train(good, run, quiet=True)
    before = sorted(run.rglob("*"))
    with pytest.raises(UserError, match="holds another run"):
        train(config, run, quiet=True)
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data.corpus", "missing.txt"],
        ["--data.corpus", "empty.txt"],
        ["--training.optimizer", "adamwx"],
        ["--training.steps", "0"],
        ["--model.backbone", "no.module:Thing"],
        ["--objective.name", "causal"],
        ["--init-from", "nowhere"],
        ["--model.condition", "no"],
        ["--training.patience", "1", "--data.corpus", "one.txt"],
        ["--training.batch_tokens", "2"],
        ["--data.max_length", "3", "--data.too_long", "drop"],
    ],
    ids=" ".join,
)
def test_a_command_that_is_refused_leaves_no_folder(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tiny_plain(tmp_path, **QUICK)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "one.txt").write_text("one text\n")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(plain))
    before = sorted(tmp_path.iterdir())
    assert main(["train", "--config", "a.yaml", "--out", "runs/run", *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("diffusionlm: ")
    assert sorted(tmp_path.iterdir()) == before
