"""The pages about training, recipes, classifiers, evaluation and likelihood: their commands and Python run."""

from pathlib import Path

import pytest
from documents import PAGES, prepare, run_commands, run_python
from tiny_runs import ROOT

VERBS = {
    "training": {"train", "generate", "show", "report"},
    "recipes": {"train", "convert", "generate"},
    "classifiers": {"train"},
    "evaluation": {"train", "generate", "evaluate"},
    "likelihood": {"score"},
    "architecture": set(),
    "many-processes": {"generate"},
    "demo": {"demo"},
}


@pytest.mark.parametrize("name", VERBS)
def test_the_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, monkeypatch)
    if name == "likelihood":
        (tmp_path / "runs" / "mine").symlink_to(tmp_path / "runs" / "quickstart")
    page = ROOT / "docs" / f"{name}.md"
    assert run_commands(page, capsys) == VERBS[name]
    run_python(page)


def test_every_page_is_run_by_a_test() -> None:
    others = {"sampling", "control", "conditional", "installing", "hub"}
    assert {page.stem for page in PAGES if page.parent.name == "docs"} == {*VERBS, *others}
