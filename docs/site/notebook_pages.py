"""Notebooks as Markdown pages: text, code, and what the cells have printed to standard output."""

from __future__ import annotations

from pathlib import Path

import nbformat


def markdown(path: Path) -> str:
    """Return the Markdown of the notebook ``path``."""
    notebook = nbformat.read(path, as_version=4)
    return "\n\n".join(piece for cell in notebook.cells for piece in _pieces(cell)) + "\n"


def _pieces(cell: nbformat.NotebookNode) -> list[str]:
    if cell.cell_type == "markdown":
        return [cell.source]
    shown = [f"```python\n{cell.source}\n```"]
    printed = [output.text for output in cell.outputs if output.get("name") == "stdout"]
    return shown + [f"```text\n{text.rstrip()}\n```" for text in printed]
