"""Models by name: folders of this machine, and the models that come with the package.

A model comes with the package by lying in the folder ``models`` of its data; no code knows which there are.
"""

from __future__ import annotations

from pathlib import Path

from diffusionlm.data.folders import is_folder
from diffusionlm.data.packaged import packaged_folders


def bundled_models() -> dict[str, Path]:
    """Return the folders of the models that come with the package, by name."""
    found = {path.parent.name: path.parent for home in packaged_folders("models") for path in home.glob("*/config.json")}
    return dict(sorted(found.items()))


def named_folder(name: str | Path) -> Path:
    """Return the folder that ``name`` stands for: one of this machine, or else the bundled model of that name."""
    path = Path(name)
    return path if is_folder(path) else bundled_models().get(str(name), path)
