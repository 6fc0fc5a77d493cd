"""Models by name: folders of this machine, the models that come with the package, and those of the Hugging Face hub.

A model comes with the package by lying in the folder ``models`` of its data; no code knows which there are.
"""

from __future__ import annotations

from pathlib import Path

from diffusionlm.data.folders import is_folder
from diffusionlm.data.packaged import packaged_folders
from diffusionlm.models.hub import cached, downloaded, repository


def bundled_models() -> dict[str, Path]:
    """Return the folders of the models that come with the package, by name."""
    found = {path.parent.name: path.parent for home in packaged_folders("models") for path in home.glob("*/config.json")}
    return dict(sorted(found.items()))


def named_folder(name: str | Path, download: bool = True) -> Path:
    """Return the folder that ``name`` stands for: one of this machine, else a bundled model, else a model of the hub.

    ``hub.repository`` tells which names are sought on the hub; without ``download``, among the models downloaded before.

    Raises:
        UserError: the hub has no such model, or cannot be reached.
    """
    path = Path(name)
    if is_folder(path):
        return path
    if (bundled := bundled_models().get(str(name))) is not None:
        return bundled
    if (wanted := repository(name)) is None:
        return path
    return downloaded(wanted) if download else cached(wanted) or path
