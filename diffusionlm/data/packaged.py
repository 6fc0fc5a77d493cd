"""Data that come with the package: in an installation in ``_data``, in a checkout in ``data``."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def packaged_folders(name: str) -> tuple[Path, Path]:
    """Return the folders where data of this ``name`` can be: of the installed package, and of the checkout."""
    return _PACKAGE / "_data" / name, _PACKAGE.parent / "data" / name
