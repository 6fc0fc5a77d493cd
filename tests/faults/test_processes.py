"""A checkpoint is resumed by as many processes as wrote it; commands that do not share their work run in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import ROOT

from diffusionlm import UserError
from diffusionlm.cli import main
from diffusionlm.training.checkpoints import check_processes, locked

STORED = str(ROOT / "tests" / "golden" / "format-1")
ONE, TWO = ["rng_state.pth"], ["rng_state_0.pth", "rng_state_1.pth"]


@pytest.mark.parametrize(("names", "wrote", "resumes"), [(ONE, 1, 2), (TWO, 2, 1), (TWO, 2, 4)])
def test_another_number_of_processes_is_refused(tmp_path: Path, names: list[str], wrote: int, resumes: int) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"expected the number of processes that wrote this checkpoint, {wrote}, got {resumes}"):
        check_processes(tmp_path, resumes)
    check_processes(tmp_path, wrote)


@pytest.mark.parametrize("processes", ["2", "0", "two"])
@pytest.mark.parametrize("command", [["generate", STORED, "--count", "1"], ["score", STORED, "-"], ["show", "samplers"]])
def test_only_train_runs_in_several_processes(
    command: list[str], processes: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"WORLD_SIZE={processes}: only train runs in several processes, under torchrun" in printed.err


@pytest.mark.parametrize("processes", ["two", "2"])
def test_train_without_a_launcher_is_refused_where_several_processes_are_expected(
    processes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert main(["train", "--out", str(tmp_path / "run")]) == 2
    assert f"WORLD_SIZE={processes}: only train" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_first_of_several_processes_holds_the_lock_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with locked(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with locked(tmp_path):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(UserError, match="another process is training here"), locked(tmp_path):
            pass
