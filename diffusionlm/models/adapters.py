"""Adapters: which part of a model a run trains and saves. The default trains and saves all weights.

Another adapter trains a part of a model's weights, or weights that it adds (``models.lora``), and saves only these; its model
folder then names the folder of the base model and the digest of its weights (``adapter.json``).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from diffusionlm.config import FORMAT_VERSION, Component, UserError, build_untrusted, to_plain
from diffusionlm.data.folders import is_folder, read_object
from diffusionlm.files import taken_version
from diffusionlm.models.named import named_folder
from diffusionlm.models.spec import ModelSpec, Splits

P = TypeVar("P", bound=PreTrainedModel)
FILE = "adapter.json"


class Adapter(Component, family="adapter"):
    """Base of the adapters.

    ``complete`` is True where ``save`` writes all weights, so that no base model is needed; ``merges`` where a loaded model is
    one like any other, which can be trained further; ``adds_joint`` where what is added is a joint head.
    """

    complete: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    adds_joint: ClassVar[bool] = False

    def fitted(self, splits: Splits) -> Self:
        """Return the adapter with what it takes from the corpus, such as the labels of a condition that it adds."""
        return self

    def of(self, model: PreTrainedModel) -> Self:
        """Return the adapter as the adapted ``model`` has it."""
        return self

    def adapted(self, spec: ModelSpec) -> ModelSpec:
        """Return the settings of an adapted model, whose training rows these make, for those of the base.

        Raises UserError where the adapter does not fit them.
        """
        return spec

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


class AddedParts(Adapter):
    """Base of the adapters that add modules to a frozen model, and save these alone; a subclass defines ``join``.

    ``file`` holds the weights whose names start with one of ``parts``.
    """

    merges: ClassVar[bool] = False
    file: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]

    def join(self, model: Any) -> None:
        """Give ``model`` the new modules. Raises UserError where they do not fit it."""
        raise NotImplementedError

    def wrap(self, model: P) -> P:
        model.requires_grad_(False)
        self.join(model)
        return model

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        save_file(self._weights(model), folder / self.file)

    def load(self, model: P, folder: Path) -> P:
        """Return ``model`` with the modules in ``folder``. Raises UserError where they do not fit it or these settings."""
        with torch.random.fork_rng(devices=[]):
            self.join(model)
        path = folder / self.file
        saved, expected = load_file(path), self._weights(model)
        if differing := sorted(saved.keys() ^ expected.keys()):
            raise UserError(f"{path}: expected the weights that {FILE} describes, but {differing[0]} differs")
        for name, weight in saved.items():
            if weight.shape != expected[name].shape or not weight.is_floating_point():
                shape, got = tuple(expected[name].shape), f"{tuple(weight.shape)} of {weight.dtype}"
                raise UserError(f"{path}: {name}: expected the shape {shape}, as {FILE} describes, got {got}")
        model.load_state_dict(saved, strict=False)
        return model

    def _weights(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return {name: weight.contiguous() for name, weight in model.state_dict().items() if name.startswith(self.parts)}


@dataclass(frozen=True)
class SavedAdapter:
    """The adapter of a model folder, the folder of its base model, and the digest of the base's weights."""

    adapter: Adapter
    folder: Path
    base: Path
    sha256: str

    def check_base(self, model: PreTrainedModel) -> None:
        """Raise UserError unless ``model``, which was loaded from ``base``, has the weights that the adapter was trained on."""
        if (got := weights_digest(model)) != self.sha256:
            raise UserError(
                f"{self.folder}: this adapter was trained on another base model than {self.base}: expected weights with the "
                f"digest {self.sha256[:12]}, got {got[:12]}; name its own base: MODEL --adapter {self.folder}"
            )


def check_complete(base: Path, where: str) -> None:
    """Raise UserError where the model folder ``base`` holds an adapter, whose own base might change."""
    if (base / FILE).exists():
        raise UserError(
            f"{where}: expected the folder of a complete model, but {base} holds an adapter of another model; "
            "train one adapter of that model, or all weights of this one (adapter full)"
        )


def weights_digest(model: PreTrainedModel) -> str:
    """Return the SHA-256 of a model's weights with their names, types and shapes; files and folders do not count."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def trained_share(model: PreTrainedModel) -> float:
    """Return the share of a model's weights that are trained."""
    counts = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(count for count, trained in counts if trained) / sum(count for count, _ in counts)


def save_adapted(adapter: Adapter, model: PreTrainedModel, folder: Path, base: str | Path | None) -> None:
    """Write the model's config and the adapter's weights.

    Where these are not all weights, ``adapter.json`` names the folder of the ``base`` model, and the digest of its weights that
    ``training.adapting.adapt`` gave the model as ``base_sha256``.
    """
    model.config.save_pretrained(folder)
    adapter.save(model, folder)
    if not adapter.complete:
        place = str(Path(str(base)).resolve()) if is_folder(str(base)) else str(base)  # the latter is a model's name
        named = {"base": place, "base_sha256": cast(Any, model).base_sha256}
        plain = {"format_version": FORMAT_VERSION, **named, "adapter": to_plain(adapter.of(model))}
        (folder / FILE).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def saved_adapter(folder: Path, base: Path | None = None) -> SavedAdapter | None:
    """Return the adapter of a model folder, or None where the folder holds a complete model.

    ``base`` is the folder of the base model, in place of the recorded one.

    Raises:
        UserError: ``adapter.json`` is damaged, or names a class whose module has not been imported; the base is missing;
            ``base`` is given for a complete model.
    """
    path = folder / FILE
    if not path.exists():
        if base is None:
            return None
        raise UserError(f"{folder}: expected the folder of an adapter, but it has no {FILE}")
    plain = read_object(path)
    if not {"base", "adapter"} <= plain.keys():
        raise UserError(f"{path}: expected the keys base and adapter, got {', '.join(plain) or 'none'}")
    taken_version(plain, path)
    if not isinstance(plain["base"], str):
        raise UserError(f"{path}: base: expected the folder of the base model, got {plain['base']!r}")
    adapter = build_untrusted(Adapter, plain["adapter"], f"{path}: adapter")
    recorded = folder / plain["base"]  # which may be an absolute path
    found = base or (recorded if is_folder(recorded) else named_folder(plain["base"], download=False))
    if not is_folder(found):
        raise UserError(
            f"{path}: base: expected the folder of the base model, but there is no {base or plain['base']}; "
            f"where it has moved, or is on the hub, name it: MODEL --adapter {folder}"
        )
    if not isinstance(plain.get("base_sha256"), str):
        raise UserError(f"{path}: base_sha256: expected the digest of the base's weights, got {plain.get('base_sha256')!r}")
    return SavedAdapter(adapter, folder, found, plain["base_sha256"])
