"""A seeded sample of the mutations that ``benchmarks/faults.py`` tries by the thousand, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import faults
import pytest
from tiny_runs import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_mutated_input_ends_in_a_result_or_one_sentence() -> None:
    kinds = ["folders", "corpora", "configs", "requests"]
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), *kinds, "--examples", "12", "--seed", "1"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[2:] == [f"| {kind} | 12 | 0 |" for kind in kinds]


@pytest.mark.parametrize(
    ("ended", "fault"),
    [
        (faults.Ended(0, "", ""), ""),
        (faults.Ended(2, "", "training: ...\ndiffusionlm: model: no such folder\n"), ""),
        (faults.Ended(2, "", ""), "0 sentences"),
        (faults.Ended(1, "", "boom"), "status 1"),
        (faults.Ended(None, "", ""), "hang: more than 10 seconds"),
        (faults.Ended(2, "", "Traceback (most recent call last):\nKeyError: 1"), "traceback: KeyError: 1"),
        (faults.Ended(0, "", "", ["wrote /etc/passwd"]), "wrote /etc/passwd"),
    ],
)
def test_what_counts_as_a_failure(ended: faults.Ended, fault: str) -> None:
    assert ended.fault() == fault


def test_a_child_is_watched() -> None:
    """The watch sees a file written outside, a program started and code run; else the benchmark's zeros would mean nothing."""
    code = f"""
import os, pathlib, subprocess, sys, tempfile
sys.path[:0] = [{str(ROOT / "benchmarks")!r}]
import faults
folder = pathlib.Path(tempfile.mkdtemp(prefix="fault-"))
(folder / "evil.py").write_text("x = 1")
outside = pathlib.Path({str(ROOT)!r}) / "fault-outside"
def action():
    exec(compile("x = 1", str(folder / "evil.py"), "exec"))
    subprocess.run(["true"])
    outside.write_text("here")
    (folder / "inside").write_text("here")
    return 0
print(*faults.forked(action, folder).events, sep="\\n")
print(faults.forked(lambda: 1 / 0, folder).fault())
import time
print(faults.forked(lambda: time.sleep(60) or 0, folder, limit=0.2).fault())
outside.unlink()
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    found = done.stdout.splitlines()
    assert [line.split()[0] for line in found] == ["ran", "subprocess.Popen", "wrote", "traceback:", "hang:"], done.stderr
