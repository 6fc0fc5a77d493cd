"""Adapters: which part of a model a run trains and saves. The default trains and saves all weights.

Another adapter trains a part of a model's weights, or weights that it adds (LoRA, say), and saves only these; its model
folder then names the folder of the base model (``adapter.json``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from transformers import PreTrainedModel

from diffusionlm.config import FORMAT_VERSION, Component, UserError, build_untrusted, to_plain
from diffusionlm.data.folders import read_object

P = TypeVar("P", bound=PreTrainedModel)
FILE = "adapter.json"


class Adapter(Component, family="adapter"):
    """Base of the adapters. ``complete`` is True where ``save`` writes all weights, so that no base model is needed."""

    complete: ClassVar[bool] = False

    def wrap(self, model: P) -> P:
        """Return the model to train, of the same class: ``model`` with weights frozen or modules added, in place."""
        raise NotImplementedError

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the trained weights; the model's config is in ``folder`` already."""
        raise NotImplementedError

    def load(self, model: P, folder: Path) -> P:
        """Return the base ``model`` with the weights that ``save`` wrote to ``folder``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Full(Adapter, name="full"):
    """All weights of the model."""

    complete: ClassVar[bool] = True

    def wrap(self, model: P) -> P:
        return model

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        model.save_pretrained(folder)

    def load(self, model: P, folder: Path) -> P:
        return model


def save_adapted(adapter: Adapter, model: PreTrainedModel, folder: Path, base: str | Path | None) -> None:
    """Write the model's config, the adapter's weights and, where these are not all, the folder of the ``base`` model."""
    model.config.save_pretrained(folder)
    adapter.save(model, folder)
    if not adapter.complete:
        named = {"format_version": FORMAT_VERSION, "base": str(Path(str(base)).resolve()), "adapter": to_plain(adapter)}
        (folder / FILE).write_text(json.dumps(named, indent=2) + "\n")


def saved_adapter(folder: Path) -> tuple[Adapter, Path]:
    """Return the adapter of a model folder, and the folder of its base model (the same where the adapter is complete).

    Raises:
        UserError: ``adapter.json`` is damaged, or names a class whose module has not been imported.
    """
    if not (folder / FILE).exists():
        return Full(), folder
    plain = read_object(folder / FILE)
    if not {"base", "adapter"} <= plain.keys():
        raise UserError(f"{folder / FILE}: expected the keys base and adapter, got {', '.join(plain) or 'none'}")
    version = plain.get("format_version", 1)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(f"{folder / FILE}: format_version: expected a whole number up to {FORMAT_VERSION}, got {version!r}")
    if not isinstance(plain["base"], str):
        raise UserError(f"{folder / FILE}: base: expected the folder of the base model, got {plain['base']!r}")
    return build_untrusted(Adapter, plain["adapter"], f"{folder / FILE}: adapter"), Path(plain["base"])
