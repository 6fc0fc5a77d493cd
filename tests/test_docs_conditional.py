"""The page about conditional generation: its commands and Python run."""

from pathlib import Path

import pytest
from documents import prepare, run_commands, run_python
from tiny_runs import ROOT


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, monkeypatch)
    page = ROOT / "docs" / "conditional.md"
    assert run_commands(page, capsys) == {"train", "generate", "edit", "evaluate", "score"}
    run_python(page)
