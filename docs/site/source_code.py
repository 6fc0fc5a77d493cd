"""The code of the library in pages: a link to an object, alone in its line, becomes the object's source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from repository import ROOT

ALONE = re.compile(r"^\[`([\w.]+)`\]\((\S+\.py)\)$", re.MULTILINE)


def include(markdown: str, page: Path) -> str:
    """Return ``markdown`` of a ``page`` (its path in the repository) with each named object's source below the link to it."""

    def block(match: re.Match[str]) -> str:
        path = (ROOT / page.parent / match[2]).resolve()
        source = source_of(path, match[1])
        return f"{match[0]}\n\n```python\n{source}\n```"

    return ALONE.sub(block, markdown)


def source_of(path: Path, name: str) -> str:
    """Return the source of the function, class or method ``name`` (``Class.method``) of a file. Raises KeyError without it."""
    text = path.read_text()
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        try:
            node = next(each for each in ast.iter_child_nodes(node) if getattr(each, "name", None) == part)
        except StopIteration:
            raise KeyError(f"{path.name} has no {name}") from None
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    lines = text.splitlines()[first - 1 : node.end_lineno]
    return "\n".join(line[node.col_offset :] for line in lines)
