"""The packages form layers: each imports only from its own and from those above it in the list."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import diffusionlm

LIBRARY = Path(__file__).parent.parent / "diffusionlm"
LAYERS = [
    ("yaml_loader", "allocator", "library", "config", "processes", "files", "progress", "plots"),
    ("core",),
    ("recipe",),
    ("data",),
    ("models",),
    ("constraints",),
    ("controls",),
    ("pipelines",),
    ("auto",),
    ("training",),
    ("evaluation",),
    ("restaurants",),
    ("demo",),
    ("arguments", "verbs", "cli", "__main__"),
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


def test_the_core_imports_config_alone_and_has_at_most_900_lines() -> None:
    files = sorted((LIBRARY / "core").glob("*.py"))
    assert {name for path in files for name in imported(path.read_text())} == {"config", "core"}
    assert sum(len(path.read_text().splitlines()) for path in files) <= 900


def public_names(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Yield the public functions, classes and methods that ``module`` defines, with their places."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__ or not hasattr(value, "__name__"):
            continue
        yield f"{module.__name__}.{name}", value
        for member, attribute in vars(value).items() if inspect.isclass(value) else ():
            if not member.startswith("_") and isinstance(attribute, (FunctionType, classmethod, staticmethod, property)):
                yield f"{module.__name__}.{name}.{member}", getattr(value, member)


def test_every_public_name_is_documented_by_itself_or_by_what_it_overrides() -> None:
    found = pkgutil.walk_packages(diffusionlm.__path__, "diffusionlm.")
    modules = [importlib.import_module(name) for _, name, _ in found if not name.endswith("__main__")]
    names = [pair for module in modules for pair in public_names(module)]
    assert len(names) > 800
    assert [place for place, value in names if not inspect.getdoc(value)] == []
