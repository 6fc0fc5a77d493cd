"""The rooms of the library: each module imports only from those above it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parent.parent / "diffusionlm"
# A row is a list of modules from top to bottom: a module may import from earlier rows, and from before it in its own.
ROWS = [
    ["config"],
    ["plots"],
    ["schedule"],
    ["diffusion"],
    ["sampling"],
    ["automaton"],
    ["language"],
    ["embedding"],
    ["grammar", "tokenizer", "corpora", "data"],
    ["backbone"],
    ["spec"],
    ["model"],
    ["objective", "regression"],
    ["labels", "accuracy", "frames"],
    ["annotation"],
    ["classifier"],
    ["classification"],
    ["masked"],
    ["optimizer"],
    ["run_folder", "progress"],
    ["training"],
    ["guidance"],
    ["controls/binding", "controls/control", "controls/expression"],
    ["controls/spelling", "controls/phrase"],
    [
        "controls/attribute",
        "controls/classifier",
        "controls/infill",
        "controls/length",
        "controls/parts_of_speech",
        "controls/pattern",
        "controls/prefix",
        "controls/reward",
        "controls/span",
        "controls/tree",
        "controls/words",
    ],
    ["controls/__init__"],
    ["lengths"],
    ["steering"],
    ["writer"],
    ["denoiser"],
    ["pipeline"],
    ["unmasking"],
    ["causal"],
    ["judge", "kinds"],
    ["likelihood"],
    ["masked_bound"],
    ["scoring"],
    ["evaluation"],
    ["run"],
    ["provenance"],
    ["report"],
    ["frontier"],
    ["tasks", "control_metrics", "control_report", "control_texts", "control_evaluation"],
    ["quickstart"],
    ["cli"],
    ["__init__"],
]
ORDER = [module for row in ROWS for module in row]
MODULES = sorted(path.relative_to(LIBRARY).with_suffix("").as_posix() for path in LIBRARY.rglob("*.py"))


def imported(source: str) -> set[str]:
    """Return the modules of the library that ``source`` imports, wherever in it the imports stand."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(part for part in ("diffusionlm" if node.level else "", node.module or "") if part)
            # ``from diffusionlm import x`` imports the module x, or a public name by way of __init__.
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "diffusionlm" else [base]
        for name in names:
            package, _, module = name.partition(".")
            if package == "diffusionlm":
                path = module.replace(".", "/")
                # Of a package in the library, what is no module of its own comes by way of its __init__.
                places = [path, path.rpartition("/")[0], f"{path}/__init__", f"{path.split('/')[0]}/__init__", "__init__"]
                found.add(next(place for place in places if place in ORDER))
    return found


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import torch\nfrom os import path", set()),
        ("import diffusionlm.model as m", {"model"}),
        ("from diffusionlm.config import UserError, build", {"config"}),
        ("from diffusionlm import sampling", {"sampling"}),
        ("from diffusionlm import train", {"__init__"}),
        ("import diffusionlm", {"__init__"}),
        ("from diffusionlm.controls import Control", {"controls/__init__"}),
        ("from diffusionlm.controls.control import Control", {"controls/control"}),
        ("from .schedule import Sqrt", {"schedule"}),
        ("from . import schedule", {"schedule"}),
        ("def f() -> None:\n    from diffusionlm.run import train", {"run"}),
        ("if TYPE_CHECKING:\n    from diffusionlm.model import DiffusionLM", {"model"}),
    ],
)
def test_how_imports_are_read(source: str, modules: set[str]) -> None:
    assert imported(source) == modules


def test_every_module_has_its_place() -> None:
    assert sorted(ORDER) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_from_above_only(module: str) -> None:
    above = set(ORDER[: ORDER.index(module)])
    assert imported((LIBRARY / f"{module}.py").read_text()) <= above


def test_the_readme_lists_every_module_after_all_that_it_imports() -> None:
    table = (LIBRARY.parent / "README.md").read_text().split("| module | what it is for |")[1].split("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines() if row]
    listed = [name.removesuffix(".py").rstrip("/") for cell in cells for name in re.findall(r"`(.+?)`", cell)]
    rooms = [module.partition("/")[0] for module in MODULES if module != "__init__"]
    assert sorted(listed) == sorted(set(rooms))
    for module in set(MODULES) - {"__init__"}:
        room = module.partition("/")[0]
        above = {other.partition("/")[0] for other in imported((LIBRARY / f"{module}.py").read_text())} - {room}
        assert above <= set(listed[: listed.index(room)]), module
