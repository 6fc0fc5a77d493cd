"""The README: its links lead somewhere, and it fits on 200 lines."""

import re
from pathlib import Path

import pytest
from documents import PAGES, blocks
from tiny_runs import ROOT

README = ROOT / "README.md"
MARKDOWN = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "benchmarks/README.md", "data/README.md"))]
TWO_COMMANDS = [
    'python3 -m venv .venv && .venv/bin/pip install -e ".[dev]" && .venv/bin/diffusionlm quickstart',
    ".venv/bin/python -m pytest",
]


def test_it_has_at_most_200_lines() -> None:
    assert len(README.read_text().splitlines()) <= 200


def test_its_first_two_blocks_are_the_two_commands() -> None:
    assert [block.strip() for block in blocks(README, "bash")[:2]] == TWO_COMMANDS


def test_it_never_installs_another_distribution() -> None:
    assert not [page.name for page in MARKDOWN if "pip install diffusion" in page.read_text()]


def test_six_equations_stand_beside_the_six_files_of_the_core() -> None:
    rows = re.findall(r"^\| \[`\w+\.py`\]\((diffusionlm/core/\w+\.py)\) \| (.*[=~].*) \|$", README.read_text(), re.MULTILINE)
    assert {ROOT / path for path, _ in rows} == {path for path in (ROOT / "diffusionlm/core").glob("[!_]*.py")}
    assert len(rows) == 6


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in headings(file), target


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_and_configs_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:examples|configs)/[\w/-]+(?:\.\w+)?/?)`", page.read_text())
    assert not [path for path in named if not (ROOT / path).exists()]
