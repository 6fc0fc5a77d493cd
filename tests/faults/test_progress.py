"""Progress bars in a log: one line every ten seconds at most, of every command."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

import diffusionlm
from diffusionlm.cli import main
from diffusionlm.evaluation.jobs import Job, Progress
from diffusionlm.evaluation.report import Likelihood, Report
from diffusionlm.progress import intervals

GOLDEN = Path(__file__).parent.parent / "golden" / "format-1"


def lines(log: str) -> list[str]:
    return [line for line in log.replace("\r", "\n").splitlines() if line.strip()]


def test_every_progress_bar_of_the_package_has_the_same_intervals() -> None:
    for path in Path(diffusionlm.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("tqdm", "trange"):
                assert any(keyword.arg is None and ast.unparse(keyword.value) == "intervals()" for keyword in node.keywords), (
                    path
                )


def test_a_log_gets_a_line_every_ten_seconds_and_a_terminal_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    assert intervals() == {"mininterval": 10.0}
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    bar = tqdm(total=60, **intervals(), miniters=1)
    for _ in range(60):  # a second each
        now[0] += 1
        bar.update()
    bar.close()
    assert 6 <= len(lines(log.getvalue())) <= 8
    monkeypatch.setattr(log, "isatty", lambda: True)
    assert intervals() == {}


def test_score_writes_two_lines_of_progress_into_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.txt").write_text("A cheap pub .\n" * 12)
    assert main(["score", str(GOLDEN), str(tmp_path / "texts.txt"), "--strata", "2"]) == 0
    assert len([line for line in lines(capsys.readouterr().err) if "scoring" in line]) <= 2


def test_evaluate_writes_no_line_per_text_or_row_into_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    def collect(progress: Progress) -> None:
        for _ in range(50):
            progress(1)

    def measure(collected: None, progress: Progress) -> Likelihood:
        return Likelihood("a", "", {}, True, 1, 1, 1.0, 0.0, 0.0, 1.0, {}, 1.0, 1.0, 0.0)

    jobs = [Job({"system": f"{n}"}, f"row {n}", 50, collect, measure) for n in range(9)]
    Report({}).run(jobs, None, quiet=False)
    assert len(lines(capsys.readouterr().err)) <= 3
