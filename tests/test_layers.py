"""The packages form layers: each imports only from its own and from those above it in the list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parent.parent / "diffusionlm"
LAYERS = [
    ("config", "files", "plots"),
    ("core",),
    ("recipe",),
    ("data",),
    ("models",),
    ("constraints",),
    ("controls",),
    ("pipelines",),
    ("training",),
    ("evaluation",),
    ("restaurants",),
    ("arguments", "cli", "__main__"),
    ("__init__",),
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(LIBRARY.rglob("*.py"))


def imported(source: str) -> set[str]:
    """Return the packages of the library that ``source`` imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "diffusionlm":
            found |= {f"diffusionlm.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used"
            found.add(node.module or "")
    names = (name.split(".") for name in found if name.split(".")[0] == "diffusionlm")
    return {parts[1] if len(parts) > 1 and parts[1] in LEVEL else "__init__" for parts in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(LIBRARY).as_posix())
def test_a_file_imports_from_its_own_layer_and_those_above(path: Path) -> None:
    package = path.relative_to(LIBRARY).parts[0].removesuffix(".py")
    assert {name for name in imported(path.read_text()) if LEVEL[name] > LEVEL[package]} == set()


@pytest.mark.parametrize(
    ("source", "packages"),
    [
        ("import torch\nfrom os import path", set()),
        ("import diffusionlm.core.model as m", {"core"}),
        ("from diffusionlm import plots", {"plots"}),
        ("from diffusionlm import train", {"__init__"}),
        ("def f() -> None:\n    from diffusionlm.training.run import train", {"training"}),
    ],
)
def test_how_imports_are_read(source: str, packages: set[str]) -> None:
    assert imported(source) == packages


def test_the_core_imports_config_alone_and_is_read_in_one_sitting() -> None:
    files = sorted((LIBRARY / "core").glob("*.py"))
    assert {name for path in files for name in imported(path.read_text())} == {"config", "core"}
    assert sum(len(path.read_text().splitlines()) for path in files) <= 900
