"""A checkpoint is resumed by as many processes as wrote it; commands that do not share their work run in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import ROOT

from diffusionlm import UserError
from diffusionlm.cli import main
from diffusionlm.evaluation.jobs import claimed
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


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return the one sentence with which a command is refused."""

    def of(*words: str) -> str:
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1
        return err

    return of


@pytest.mark.parametrize("processes", ["2", "0", "two"])
@pytest.mark.parametrize("command", [["show", "samplers"], ["quickstart"], ["distill", STORED, "--out", "nowhere"]])
def test_a_command_that_does_not_share_its_work_runs_in_one_process(
    command: list[str], processes: str, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    assert f"WORLD_SIZE={processes}: this command runs in one process; unset WORLD_SIZE" in refusal(*command)


@pytest.mark.parametrize("processes", ["2", "0", "two"])
@pytest.mark.parametrize("command", [["generate", STORED], ["score", STORED, "texts.txt"], ["evaluate", "--judge", STORED]])
def test_several_processes_need_a_launcher(
    command: list[str], processes: str, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    said = refusal(*command)
    assert f"WORLD_SIZE={processes}: expected the number of processes that a launcher started; unset WORLD_SIZE, and" in said


@pytest.mark.parametrize("number", ["0", "-1"])
@pytest.mark.parametrize("command", [["generate", STORED], ["train", "--out", "nowhere"], ["evaluate", "--judge", STORED]])
def test_a_wrong_number_of_processes_is_refused(command: list[str], number: str, refusal: Callable[..., str]) -> None:
    assert f"--processes: expected at least 1, got {number}" in refusal(*command, f"--processes={number}")


def test_processes_of_a_launcher_do_not_start_others(monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    said = refusal("generate", STORED, "--processes", "3")
    assert "--processes: a launcher has started 2 processes already; leave --processes out" in said


@pytest.mark.parametrize(
    "words", [["score", STORED, "-"], ["edit", STORED, "--file", "-"], ["generate", STORED, "--source", "-"]]
)
def test_several_processes_do_not_read_one_standard_input(words: list[str], refusal: Callable[..., str]) -> None:
    said = refusal(*words, "--processes", "2")
    assert "-: standard input cannot be read by several processes; save it to a file" in said


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharded_weights_are_refused(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    monkeypatch.setenv(variable, "true")
    assert f"{variable}: " in refusal("train", "--out", str(tmp_path / "run"), "--training.steps", "1")


def test_a_second_evaluation_in_the_same_folder_is_refused(tmp_path: Path, refusal: Callable[..., str]) -> None:
    out = tmp_path / "out"
    corpus, task = str(ROOT / "configs" / "restaurants.yaml"), str(ROOT / "configs" / "control" / "length.yaml")
    judged = ["--judge", STORED, "--config", corpus]
    for words in (judged, [*judged, "--controls", task], ["--references", "references.csv"]):
        with claimed(out):
            said = refusal("evaluate", STORED, *words, "--out", str(out))
        assert f"{out}: another process is evaluating here; wait for its end, or choose another --out" in said
        assert not out.exists()


@pytest.mark.parametrize("processes", ["two", "2"])
def test_train_without_a_launcher_is_refused_where_several_processes_are_expected(
    processes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert main(["train", "--out", str(tmp_path / "run")]) == 2
    assert f"WORLD_SIZE={processes}: expected the number" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_first_of_several_processes_holds_the_lock_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with locked(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with locked(tmp_path):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(UserError, match="another process is training here"), locked(tmp_path):
            pass
