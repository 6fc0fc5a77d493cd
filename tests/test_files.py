"""Files are replaced as a unit, and a failure to write is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusionlm.config import UserError
from diffusionlm.files import disk_errors, write, write_text


def test_a_file_is_created_with_its_folder_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two" and [file.name for file in path.parent.iterdir()] == ["b.json"]


def test_a_failed_write_leaves_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    write_text(path, "before")

    def fail(staged: Path) -> None:
        staged.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"report.txt: cannot be written: No space left on device; .* intact"):
        write(path, fail)
    assert path.read_text() == "before"


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), disk_errors(Path("x")):
        raise RuntimeError("shapes do not match")
