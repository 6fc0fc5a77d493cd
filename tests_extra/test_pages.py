"""The README and the pages of docs/: their commands and Python run."""

import json
from pathlib import Path

import pytest
from documents import PAGES, commands, prepare, run, run_commands, run_python
from tiny_runs import ROOT

README, DOCS = ROOT / "README.md", ROOT / "docs"
VERBS: dict[str, set[str]] = {  # page -> the commands that it has
    "architecture": set(),
    "classifiers": {"train"},
    "conditional": {"train", "generate", "edit", "evaluate", "score"},
    "control": {"generate", "show"},
    "corpora": {"train", "generate"},
    "demo": {"demo"},
    "evaluation": {"train", "generate", "evaluate"},
    "faq": set(),
    "few-steps": {"distill", "generate"},
    "fine-tuning": {"train", "generate"},
    "honest-evaluation": {"evaluate"},
    "how-it-works": set(),
    "index": set(),
    "likelihood": {"score"},
    "many-processes": {"generate"},
    "own-control": {"generate"},
    "own-corpus": {"train", "generate", "report", "evaluate"},
    "paper": {"train", "convert", "generate"},
    "recipes": {"train"},
    "reference/commands": set(),
    "reference/python": set(),
    "reference/settings": {"show"},
    "sampling": {"generate", "show"},
    "training": {"train", "generate", "show", "report"},
}


@pytest.mark.parametrize("name", VERBS)
def test_the_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, monkeypatch)
    if name == "likelihood":
        (tmp_path / "runs" / "mine").symlink_to(tmp_path / "runs" / "quickstart")
    page = DOCS / f"{name}.md"
    if name == "honest-evaluation":  # its judge is that of the page about evaluation
        run(["train", "--config", "configs/restaurants-judge.yaml", "--out", "runs/judge"], page, capsys)
    assert run_commands(page, capsys) == VERBS[name]
    run_python(page)
    if name == "many-processes":
        lines = (tmp_path / "samples.jsonl").read_text().splitlines()
        assert [json.loads(line)["index"] for line in lines] == [0, 1]


def test_every_page_is_run_by_a_test() -> None:
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES if page.is_relative_to(DOCS)}
    assert pages == {*VERBS, "installing", "hub"}  # which are in tests/test_installing.py and test_page_hub.py


def test_the_commands_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path, monkeypatch)
    (tmp_path / "runs" / "quickstart").rename(tmp_path / "trained")  # the first command trains it anew
    assert next(arguments[0] for arguments in commands(README)) == "quickstart"
    assert run_commands(README, capsys) == {"quickstart", "train", "generate", "evaluate", "edit"}
    assert (tmp_path / "runs" / "quickstart" / "quickstart.json").exists()


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, monkeypatch)
    run_python(README)
