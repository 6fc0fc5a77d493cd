"""The page about the hub: its commands and Python run, with a hub on this machine."""

from pathlib import Path

import pytest
from documents import prepare, run_commands, run_python
from hub_server import connected
from tiny_runs import ROOT


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, monkeypatch)
    with connected(tmp_path, monkeypatch) as hub:
        assert run_commands(ROOT / "docs" / "hub.md", capsys) == {"push", "generate"}
        run_python(ROOT / "docs" / "hub.md")
    assert hub.private == {"you/restaurants": True}
