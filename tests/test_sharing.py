"""Processes that share their work print and write what one process does."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from tiny_runs import ROOT, restaurant_texts, tiny_config, tiny_plain
from torch.distributed import HashStore  # type: ignore[attr-defined]

from diffusionlm.cli import main
from diffusionlm.config import build
from diffusionlm.processes import Team, at_most, shared
from diffusionlm.training.run import RunConfig, train
from diffusionlm.verbs.rows import Rows

R = TypeVar("R")
STORED = str(ROOT / "tests" / "golden" / "format-1")
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def in_threads(size: int, work: Callable[[Team], R]) -> list[R]:
    """Return what ``work`` returns to each member of a team, which are threads here."""
    store, found = HashStore(), {}
    members = [Team(store, rank, size) for rank in range(size)]
    threads = [threading.Thread(target=lambda one=one: found.update({one.rank: work(one)})) for one in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(size)]


@pytest.mark.parametrize("count", [0, 1, 2, 17])
def test_each_unit_is_done_once_and_the_first_member_receives_all_in_order(count: int) -> None:
    done: list[int] = []

    def square(unit: int) -> list[int]:
        done.append(unit)
        return [unit * unit]

    def work(member: Team) -> list[list[int]]:
        return [unit for units in (range(count), range(100, 103)) for unit in member.share(units, square, lambda plain: plain)]

    first, *others = in_threads(3, work)
    assert first == [[unit * unit] for unit in (*range(count), 100, 101, 102)]
    assert others == [[], []]
    assert sorted(done) == [*range(count), 100, 101, 102]


def test_members_agree_on_the_value_of_the_first_and_sum_theirs() -> None:
    def work(member: Team) -> tuple[Any, list[float]]:
        return member.agreed([member.rank]), member.summed([1, 0.5 * member.rank])

    first, second, third = in_threads(3, work)
    assert first == ([0], [3.0, 1.5])
    assert second == ([0], [1.0, 0.5]) and third == ([0], [1.0, 1.0])


def test_a_process_alone_does_all_units_in_whole_batches() -> None:
    assert list(shared(range(3), str, str)) == ["0", "1", "2"]
    assert at_most(128, 10) == 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a diffusion run, a judge's, and a task, all of the same texts."""
    folder = tmp_path_factory.mktemp("shared")
    with redirect_stderr(io.StringIO()):
        train(tiny_config(folder, training={"steps": 2}), folder / "run", quiet=True)
        plain = tiny_plain(folder, training={"steps": 2}, objective="causal")
        causal = {**plain, "model": {"name": "causal", "layers": 1, "width": 16, "heads": 2}}
        train(build(RunConfig, causal), folder / "judge", quiet=True)
    task = {"task": "length", "split": "train", "targets": 9, "samples": 2, "sampling": {"steps": 2, "sweeps": 0}}
    (folder / "length.yaml").write_text(yaml.safe_dump(task))
    (folder / "texts.txt").write_text("\n".join(restaurant_texts(200)))
    (folder / "few.txt").write_text("\n".join(restaurant_texts(5)))
    return folder


def control(folder: Path, out: Path) -> list[str]:
    run, judge, task = (str(folder / name) for name in ("run", "judge", "length.yaml"))
    return ["evaluate", run, "--judge", judge, "--controls", task, "--out", str(out)]


def commands(folder: Path, out: Path) -> dict[str, list[str]]:
    run, judge, texts = (str(folder / name) for name in ("run", "judge", "few.txt"))
    controls = ["--control", "Length(9, 12) & ~Words('pub')", "--ensure", "2", "--batch-size", "2", "--steps", "3"]
    sizes = ["--count", "6", "--bound-texts", "3", "--temperatures", "1", "--steps", "2", "--strata", "4", "--orders", "2"]
    small = [*sizes, "--sampling.batch_size", "4"]
    return {
        "generate": ["generate", STORED, "-n", "5", "--batch-size", "2", "--sampling.steps", "4"],
        "controlled": ["generate", STORED, "-n", "5", *controls],
        "edit": ["edit", STORED, "--text", "It is a cheap pub.", "-n", "3", "--batch-size", "1", "--steps", "3"],
        "score": ["score", run, texts, "--strata", "4"],
        "exact": ["score", judge, texts, "--batch-size", "2"],
        "evaluate": ["evaluate", run, "--judge", judge, "--out", str(out / "evaluation"), *small],
        "control": control(folder, out / "control"),
    }


def figures(value: Any) -> Any:
    """Return a report without times and folders, which no two calls share; numbers are compared to rounding."""
    if isinstance(value, dict):
        return {k: figures(v) for k, v in value.items() if k not in ("seconds", "cpu_seconds", "machine", "threads")}
    if isinstance(value, list):
        return [figures(each) for each in value]
    return pytest.approx(value, rel=1e-5) if isinstance(value, float) else value


@pytest.fixture(scope="module")
def both(folder: Path) -> tuple[Path, Path]:
    """Two folders with the outputs of all commands: of one process, and of two under torchrun."""
    alone, together = folder / "alone", folder / "together"
    for place in (alone, together):
        place.mkdir()
        (place / "commands.json").write_text(json.dumps(commands(folder, place)))
    script = str(ROOT / "tests" / "shared_work.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    second = subprocess.Popen([*launcher, "commands.json"], cwd=together, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    for name, words in commands(folder, alone).items():
        with open(alone / f"{name}.out", "w") as out, redirect_stdout(out), redirect_stderr(io.StringIO()):
            assert main(words) == 0
    said = second.communicate()[1]
    assert second.returncode == 0, said
    return alone, together


@pytest.mark.parametrize("name", ["generate", "controlled", "edit", "score", "exact"])
def test_two_processes_print_the_rows_of_one(both: tuple[Path, Path], name: str) -> None:
    files = (both[0] / f"{name}.out", both[1] / f"{name}-0.out")
    alone, together = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert together == figures(alone)
    assert [row["index"] for row in together] == list(range(len(alone)))
    assert [(both[1] / f"{name}-1.{stream}").read_text() for stream in ("out", "err")] == ["", ""]


@pytest.mark.parametrize(("name", "file"), [("evaluate", "evaluation/evaluation.json"), ("control", "control/control.json")])
def test_two_processes_write_the_report_of_one(both: tuple[Path, Path], name: str, file: str) -> None:
    alone, together = (json.loads((place / file).read_text()) for place in both)
    assert figures(together) == figures(alone)
    assert (both[1] / f"{name}-0.out").read_text() == (both[1] / file).with_name("table.txt").read_text()
    texts = [{each.name: each.read_text() for each in (place / file).parent.glob("texts/*")} for place in both]
    assert texts[0].keys() == texts[1].keys() and texts[0]


def test_a_killed_process_ends_the_call_and_the_next_one_goes_on(folder: Path, both: tuple[Path, Path]) -> None:
    out = folder / "killed"
    words = [sys.executable, "-m", "diffusionlm", *control(folder, out), "--import", "dies", "--processes", "2"]
    ended = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    said = [line for line in ended.stderr.splitlines() if line.startswith("diffusionlm:")]
    assert said == [
        "diffusionlm: process 2 of 2 was killed (SIGKILL), so the others were stopped; what was written before is complete"
    ]
    assert json.loads((out / "control.json").read_text())["rows"] == []
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert main(control(folder, out)) == 0
    complete, whole = (json.loads((place / "control.json").read_text()) for place in (out, both[0] / "control"))
    assert figures(complete) == figures(whole)


@pytest.fixture
def endless() -> Iterator[subprocess.Popen[str]]:
    words = ["generate", STORED, "-n", "100000", "--batch-size", "1", "--steps", "1", "--sweeps", "0", "--processes", "2"]
    started = subprocess.Popen(
        [sys.executable, "-m", "diffusionlm", *words],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in the background
    )
    yield started
    started.kill()
    started.communicate()


def test_ctrl_c_stops_all_processes_with_one_sentence(endless: subprocess.Popen[str]) -> None:
    assert endless.stdout is not None
    assert json.loads(endless.stdout.readline())["index"] == 0
    endless.send_signal(signal.SIGINT)
    _, said = endless.communicate()  # ends when no process holds the streams
    assert endless.returncode == 130
    assert said.splitlines()[-1] == "diffusionlm: interrupted; the files written so far are complete"
    assert said.count("interrupted") == 1 and "Traceback" not in said


@pytest.mark.parametrize("verb", ["generate", "score"])
def test_rows_in_a_file_are_those_of_a_call_that_was_not_interrupted(
    verb: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = commands(folder, tmp_path)[verb]
    assert main(words) == 0
    complete = capsys.readouterr().out
    out, part = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.part"
    assert main([*words, "--out", str(out)]) == 0
    assert out.read_text() == complete and capsys.readouterr().out == ""
    assert [each.name for each in tmp_path.iterdir()] == ["rows.jsonl"]
    assert main([*words, "--out", str(out)]) == 2
    assert f"{out}: this file is there already, and complete; choose another --out" in capsys.readouterr().err
    out.unlink()
    add = Rows.add

    def interrupted(rows: Rows, row: dict[str, Any]) -> None:
        if row["index"] == 3:
            raise KeyboardInterrupt
        add(rows, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "add", interrupted)
        assert main([*words, "--out", str(out)]) == 130
    assert not out.exists() and part.read_text().splitlines()[1:] == complete.splitlines()[:3]
    part.write_bytes(part.read_bytes() + '{"text": "Café'.encode()[:-1])  # as if the disk had been full in the fourth row
    capsys.readouterr()
    assert main([*words, "--out", str(out), "--seed", "7"]) == 2
    assert "holds rows of another call (its seed is null, not 7); delete it, or choose" in capsys.readouterr().err
    assert main([*words, "--out", str(out)]) == 0
    assert out.read_text() == complete and f"3 rows are in {part} already" in capsys.readouterr().err


def test_rows_are_not_written_into_a_folder_nor_into_one_called_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    words = ["generate", STORED, "--count", "1", "--steps", "1"]
    for name in ("new/", "home"):
        assert main([*words, "--out", name]) == 2
        assert f"{name}: expected a file for the rows, got a folder" in capsys.readouterr().err
    assert main([*words, "--out", "~/rows.jsonl"]) == 0
    assert [each.name for each in tmp_path.rglob("*")] == ["home", "rows.jsonl"]
