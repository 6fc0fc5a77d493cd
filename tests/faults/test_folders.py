"""Only what the trainer itself wrote is counted, replaced or removed; a folder belongs to one run at a time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import tiny_config

from diffusionlm import UserError
from diffusionlm.evaluation.report import Report
from diffusionlm.files import write_folder
from diffusionlm.training.checkpoints import (
    MARKER,
    clear_places,
    complete_checkpoints,
    locked,
    newest_checkpoint,
    remove_checkpoint,
    trim_log,
)  # fmt: skip
from diffusionlm.training.run import train


def checkpoint(folder: Path, name: str, step: int) -> Path:
    path = folder / "checkpoints" / name
    path.mkdir(parents=True)
    (path / "model.safetensors").write_text("weights")
    (path / MARKER).write_text(f'{{"step": {step}}}')
    return path


def test_copies_that_a_user_made_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    run, short = tmp_path / "run", {"training": {"steps": 4, "save_every": 1, "keep": 1, "sample_every": 4}}
    checkpoint(run, "checkpoint-1", 1)
    for name in ("checkpoint-good-4", "checkpoint-best", "checkpoint-01", "copy-of-checkpoint-1"):
        shutil.copytree(run / "checkpoints" / "checkpoint-1", run / "checkpoints" / name)
    assert complete_checkpoints(run) == [run / "checkpoints" / "checkpoint-1"]
    shutil.rmtree(run / "checkpoints" / "checkpoint-1")
    begun = tmp_path / "begun"
    assert train(tiny_config(tmp_path, **short), begun, quiet=True)
    (begun / "model" / "finished").unlink()
    for path in (run / "checkpoints").iterdir():
        path.rename(begun / "checkpoints" / path.name)
    assert train(tiny_config(tmp_path, **short), begun, quiet=True)
    kept = {"checkpoint-4", "checkpoint-best", "checkpoint-good-4", "checkpoint-01", "copy-of-checkpoint-1"}
    assert {path.name for path in (begun / "checkpoints").iterdir()} == kept


def test_a_copy_under_the_name_of_a_later_step_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, "checkpoint-2", 2)
    checkpoint(tmp_path, "checkpoint-4", 2)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "checkpoint-2"
    with pytest.raises(UserError, match=r"checkpoint-4: its complete.json does not name step 4, .* delete it, or move it away"):
        clear_places(tmp_path, range(3, 9))
    assert (tmp_path / "checkpoints" / "checkpoint-4" / MARKER).is_file()
    clear_places(tmp_path, range(5, 9))


def test_an_incomplete_checkpoint_gives_way_and_other_files_do_not(tmp_path: Path) -> None:
    incomplete, other = tmp_path / "checkpoints" / "checkpoint-6", tmp_path / "checkpoints" / "checkpoint-8"
    for path in (incomplete, other):
        path.mkdir(parents=True)
        (path / "model.safetensors").write_text("half of the wei")
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="checkpoint-8: this place is needed for a checkpoint; rename or move what is there"):
        clear_places(tmp_path, range(3, 9))
    assert not incomplete.exists() and (other / "notes.txt").read_text() == "mine"


def test_a_users_file_in_a_checkpoint_outlives_it(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "checkpoint-2", 2)
    (path / "notes.txt").write_text("mine")
    remove_checkpoint(path)
    assert [file.name for file in path.iterdir()] == ["notes.txt"]


def test_a_users_folder_at_the_place_of_preparation_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.new").mkdir()
    (tmp_path / "model.new" / "mine").touch()
    with pytest.raises(UserError, match=r"model.new: this place is needed to prepare model/; rename or move what is there"):
        write_folder(tmp_path / "model", lambda staged: (staged / "config.json").touch())
    assert (tmp_path / "model.new" / "mine").is_file() and not (tmp_path / "model").exists()


def test_what_a_killed_export_left_is_replaced(tmp_path: Path) -> None:
    killed = (
        "import os, sys; from pathlib import Path; from diffusionlm.files import write_folder\n"
        "write_folder(Path(sys.argv[1]), lambda staged: ((staged / 'half').touch(), os._exit(9)))"
    )
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "model")], check=False)
    assert (tmp_path / "model.new" / "half").is_file()
    write_folder(tmp_path / "model", lambda staged: (staged / "config.json").touch())
    assert [file.name for file in tmp_path.rglob("*")] == ["model", "config.json"]


def test_a_damaged_row_in_the_log_loses_none_of_those_after_it(tmp_path: Path) -> None:
    for row in ("{'st", "[1]", '{"loss": 1.0}'):
        text = f'{{"step": 1}}\n{row}\n{{"step": 3}}\n'
        (tmp_path / "log.jsonl").write_text(text)
        with pytest.raises(UserError, match=r"log.jsonl:2: expected a row of the log, got .*; delete this line"):
            trim_log(tmp_path / "log.jsonl", 3)
        assert (tmp_path / "log.jsonl").read_text() == text


def test_a_second_process_in_the_folder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    holds = "import sys; from diffusionlm.training.checkpoints import *\nwith locked(Path(sys.argv[1])): print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holds, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="run: another process is training here; .* choose another --out"):
            train(tiny_config(tmp_path, training={"steps": 1}), tmp_path / "run", quiet=True)
        first.kill()  # without any chance to tidy up
        first.wait()
    with locked(tmp_path / "run"):
        assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_folder_with_the_shells_own_log_is_a_place_for_a_run(tmp_path: Path) -> None:
    run, one = tmp_path / "run", tiny_config(tmp_path, training={"steps": 1})
    run.mkdir()
    for name in ("train.log", "nohup.out"):
        (run / name).write_text("started\n")
    assert train(one, run, quiet=True)
    assert (run / "train.log").read_text() == "started\n"
    for name in ("log.jsonl", "notes.docx", "samples"):
        other = tmp_path / f"with-{name}"
        other.mkdir()
        (other / name).mkdir() if name == "samples" else (other / name).touch()
        with pytest.raises(UserError, match=f"expected a new or empty folder, .* other files, such as {name}"):
            train(one, other, quiet=True)
    with pytest.raises(UserError, match=r"texts.txt: expected a folder, or a place for a new one, got a file"):
        train(one, tmp_path / "texts.txt", quiet=True)


def test_an_evaluation_that_stopped_before_its_first_row_goes_on(tmp_path: Path) -> None:
    (tmp_path / "evaluation" / "texts").mkdir(parents=True)
    (tmp_path / "evaluation" / "texts" / "reference-text.jsonl").write_text("{}\n")
    assert Report.open(tmp_path / "evaluation", {"seed": 0}).rows == []
    (tmp_path / "evaluation" / "notes.md").touch()
    with pytest.raises(UserError, match="expected an empty or new folder, or an evaluation's, but it holds other files"):
        Report.open(tmp_path / "evaluation", {"seed": 0})
