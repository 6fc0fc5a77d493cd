"""The animation of the README: it is drawn from a run."""

import xml.etree.ElementTree
from pathlib import Path

import animation
import pytest
from documents import prepare
from tiny_runs import ROOT


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
