"""The documentation site: it builds without a warning, needs nothing from elsewhere, and its references are complete."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from settings_reference import GROUPS, load, names, table
from tiny_runs import ROOT

import diffusionlm
from diffusionlm.arguments import COMMANDS
from diffusionlm.verbs.showing import FAMILIES


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = r"""<(?:script|img|iframe|source)[^>]* src=["']?(?:https?:)?//|<link[^>]* href=["']?(?:https?:)?//"""
    assert [page.name for page in site.rglob("*.html") if re.search(loaded, page.read_text())] == []
    assert [sheet.name for sheet in site.rglob("*.css") if re.search(r"@import|url\(.?https?:", sheet.read_text())] == []


def test_the_settings_have_every_component_and_field(site: Path) -> None:
    shown = text_of(site / "reference" / "settings" / "index.html")
    for family, path in FAMILIES.items():
        assert family.capitalize() in shown
        for member, kind in load(path).kinds().items():
            assert member in shown
            assert [row for row in table(kind).splitlines() if "`None`" in row or "<" in row] == []


def test_docstrings_say_what_each_setting_is() -> None:
    kinds = [load(path) for path in GROUPS.values()]
    kinds += [kind for path in FAMILIES.values() for kind in load(path).kinds().values()]
    for kind in kinds:
        said = " ".join(str(base.__doc__) for base in kind.__mro__ if base.__module__.startswith("diffusionlm"))
        assert [name for name in names(kind) if not re.search(rf"\b{name}\b", said)] == [], kind


def test_the_commands_have_every_option(site: Path) -> None:
    shown = text_of(site / "reference" / "commands" / "index.html")
    flags = {flag for _, options, _ in COMMANDS.values() for names, _ in options for flag in names if flag.startswith("-")}
    assert [flag for flag in [*flags, *COMMANDS] if flag not in shown] == []


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    shown = (site / "reference" / "python" / "index.html").read_text()
    objects = [getattr(diffusionlm, name) for name in diffusionlm.__all__]
    expected = [f"{each.__module__}.{each.__qualname__}" for each in objects]
    assert [name for name in expected if f'id="{name}"' not in shown] == []
