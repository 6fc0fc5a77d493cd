"""The cache of large corpora: an entry is made once, by one process, and again where it is damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffusionlm.config import UserError
from diffusionlm.data.store import LARGE, cache_folder, is_cached, stored

WRITER = Path(__file__).parent.parent / "cache_writer.py"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFUSIONLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Makes an entry, and counts how often."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.made += 1
        (folder / "content").write_text("abc")
        return {"number": self.made}


def test_an_entry_is_made_once_for_each_key() -> None:
    make = Maker()
    found = [stored("test", {"a": a}, make) for a in (1, 1, 2, 1)]
    assert [entry.facts["number"] for entry in found] == [1, 1, 2, 1] and make.made == 2
    assert found[0].folder == found[1].folder != found[2].folder
    assert (found[0].folder / "content").read_text() == "abc"


DAMAGE: dict[str, Callable[[Path], object]] = {
    "another byte": lambda folder: (folder / "content").write_text("abd"),
    "cut": lambda folder: (folder / "content").write_text("ab"),
    "lost": lambda folder: (folder / "content").unlink(),
    "no marker": lambda folder: (folder / "complete.json").unlink(),
    "an empty marker": lambda folder: (folder / "complete.json").write_text(""),
    "another marker": lambda folder: (folder / "complete.json").write_text('{"files": {"content": 3}}'),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_entry_is_made_again_and_reported(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    make = Maker()
    folder = stored("test", {}, make).folder
    DAMAGE[kind](folder)
    assert stored("test", {}, make).facts["number"] == 2 == stored("test", {}, make).facts["number"]
    assert (folder / "content").read_text() == "abc"
    assert capsys.readouterr().err == f"{folder}: this entry of the cache is damaged, and is made again\n"


def test_an_entry_that_was_not_finished_is_no_entry(cache: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "content").write_text("ab")
        raise UserError("texts.txt, line 7: no")

    with pytest.raises(UserError, match="^texts.txt, line 7: no$"):
        stored("test", {}, fail)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    killed = Path(str(next(cache.iterdir())).replace(".lock", ".new"))  # what a process leaves that is killed meanwhile
    killed.mkdir()
    (killed / "other").write_text("ab")
    folder = stored("test", {}, Maker()).folder
    assert {path.name for path in folder.iterdir()} == {"content", "complete.json"} and not killed.exists()


def test_a_cache_that_cannot_be_written_is_refused(cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(
        UserError, match=f"^{cache}: the cache .* cannot be written: .*; set DIFFUSIONLM_CACHE to .*, or to off$"
    ):
        stored("test", {}, Maker())


def test_the_variable_names_a_folder_or_disables_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == cache and is_cached(LARGE) and not is_cached(LARGE - 1)
    monkeypatch.setenv("DIFFUSIONLM_CACHE", "off")
    assert cache_folder() is None and not is_cached(LARGE)
    monkeypatch.delenv("DIFFUSIONLM_CACHE")
    assert cache_folder() is not None and str(cache_folder()).endswith("datasets/diffusionlm")


def test_of_two_processes_one_makes_an_entry_and_the_other_waits_for_it() -> None:
    def start() -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, str(WRITER)], text=True, env=os.environ, **pipes)  # type: ignore[call-overload]

    with start() as first:
        assert first.stdout is not None and first.stdin is not None
        assert first.stdout.readline() == "begun\n"
        with start() as second:
            assert second.stderr is not None
            assert "another process is making this entry of the cache; waiting for it" in second.stderr.readline()
            assert first.communicate("the first\n")[0] == "the first\n"
            assert second.communicate("the second\n")[0] == "the first\n"
