"""The pages about sampling and control: their commands and Python run; and the animation is drawn from a run."""

import xml.etree.ElementTree
from pathlib import Path

import animation
import pytest
from documents import prepare, run_commands, run_python
from tiny_runs import ROOT


@pytest.mark.parametrize(("name", "verbs"), [("sampling", {"generate", "show", "distill"}), ("control", {"generate", "show"})])
def test_the_page_runs(
    name: str, verbs: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path, monkeypatch)
    page = ROOT / "docs" / f"{name}.md"
    assert run_commands(page, capsys) == verbs
    run_python(page)


def test_the_animation_has_a_frame_per_step_and_ends_with_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, monkeypatch)
    animation.main(["runs/quickstart", "--out", "watch.svg", "--count", "2", "--control", "Length(9)"])
    root = xml.etree.ElementTree.parse(tmp_path / "watch.svg").getroot()
    frames = [each for each in root if each.tag.endswith("}g")]
    assert len(frames) == 4 + 1
    assert [text[:2] for text in map("".join, map(xml.etree.ElementTree.Element.itertext, frames[-1]))][-2:] == ["✓ ", "✓ "]


def test_the_animation_of_the_readme_is_small_and_complete() -> None:
    path = ROOT / "docs" / "watch.svg"
    assert path.stat().st_size < 500_000
    text = path.read_text()
    xml.etree.ElementTree.fromstring(text)
    assert "<script" not in text and "@font-face" not in text and "http" not in text.replace("http://www.w3.org/", "")
