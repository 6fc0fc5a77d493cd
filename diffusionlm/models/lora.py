"""LoRA: low-rank updates of linear layers, trained by peft and merged into the base model when they are loaded.

    W' = W + (alpha / r) B A        A (r, in) random, B (out, r) zero at the start        (Hu et al. 2021, section 4.1)

A folder holds the adapter in peft's format: ``adapter_config.json`` and ``adapter_model.safetensors``. Loading needs no peft:
the config is checked key by key, since anybody may have written it, and the products are added to the base's weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import pydantic
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffusionlm.config import Settings, UserError, build, nearest, plain_name
from diffusionlm.data.folders import read_object
from diffusionlm.models.adapters import Adapter, P
from diffusionlm.models.io import Text

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the weights' names in peft's files
# Keys of peft's config that only describe the folder, or its defaults that are not empty: any other key has to be empty.
DESCRIPTIONS = ("peft_version", "base_model_name_or_path", "revision", "inference_mode")
DEFAULTS = {"megatron_core": "megatron.core", "qalora_group_size": 16}


@dataclass(frozen=True)
class Lora(Adapter, name="lora"):
    """Low-rank updates of linear layers (Hu et al. 2021), by default of the query and value projections. Needs peft.

    Args:
        rank: r, the rank of the updates.
        alpha: the updates are scaled by alpha / r.
        targets: linear layers by their names in the model, or by a part of them: ``query`` is ``network.blocks.0.query`` and
            all others of this name. Empty is the query and value projections.
        dropout: share of the inputs of the updates that is dropped in training.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.expect("1 to 100000", "rank")
        self.expect("a positive number", "alpha")
        self.expect("a share from 0 to below 1", "dropout")

    def wrap(self, model: P) -> P:
        """Freeze ``model`` and add updates to its target layers. Raises UserError for an unknown target, or without peft."""
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise UserError("adapter: 'lora' is trained by peft, which is not installed; it is in the extra 'lora'") from None
        names = target_layers(model, self.targets)
        scale = int(self.alpha) if self.alpha.is_integer() else self.alpha
        settings: dict[str, Any] = {"r": self.rank, "lora_alpha": scale, "lora_dropout": self.dropout}
        inject_adapter_in_model(LoraConfig(target_modules=names, **settings), model)
        return model

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        from peft import get_peft_model_state_dict

        weights = get_peft_model_state_dict(model, save_embedding_layers=False)
        config: dict[str, Any] = cast(Any, model).peft_config["default"].to_dict()
        known = {field.name for field in fields(SavedLora)} | {*DESCRIPTIONS}
        plain = {key: value for key, value in config.items() if key in known}
        plain["target_modules"] = sorted({name.rpartition(".lora_")[0] for name in weights})  # peft shortens these names
        (folder / CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_file({PREFIX + name: weight.contiguous() for name, weight in weights.items()}, folder / WEIGHTS)

    @torch.no_grad()
    def load(self, model: P, folder: Path) -> P:
        """Merge the updates in ``folder`` into ``model``. Raises UserError where they do not fit it or these settings."""
        saved = SavedLora.read(folder / CONFIG)
        if (saved.r, saved.lora_alpha) != (self.rank, self.alpha):
            expected = f"r {self.rank} and lora_alpha {self.alpha:g} as in adapter.json"
            raise UserError(f"{folder / CONFIG}: expected {expected}, got {saved.r} and {saved.lora_alpha:g}")
        layers, weights = linear_layers(model), load_file(folder / WEIGHTS)
        if (unknown := next((name for name in saved.target_modules if name not in layers), None)) is not None:
            raise UserError(
                f"{folder / CONFIG}: target_modules: there is no linear layer {unknown!r}{nearest(unknown, layers)}"
            )
        pairs = {name: tuple(f"{PREFIX}{name}.lora_{part}.weight" for part in "AB") for name in {*saved.target_modules}}
        if differing := sorted({each for pair in pairs.values() for each in pair} ^ weights.keys()):
            raise UserError(f"{folder / WEIGHTS}: expected A and B of each of target_modules, but {differing[0]} differs")
        for name, (a, b) in pairs.items():
            layer = layers[name]
            _check_shapes(folder / WEIGHTS, a, weights[a], (saved.r, layer.in_features))
            _check_shapes(folder / WEIGHTS, b, weights[b], (layer.out_features, saved.r))
            layer.weight += weights[b].float() @ weights[a].float() * (saved.lora_alpha / saved.r)
        return model


@dataclass(frozen=True, kw_only=True)
class SavedLora(Settings):
    """The keys of peft's ``adapter_config.json`` that are applied, and the values that may be: plain LoRA without a bias."""

    peft_type: Literal["LORA"]
    r: Annotated[int, pydantic.Strict(), pydantic.Field(ge=1)]
    lora_alpha: float
    target_modules: list[Text]
    lora_dropout: float = 0.0  # of training alone
    bias: Literal["none"] = "none"
    init_lora_weights: Literal[True] = True  # other starts change the base's weights

    def __post_init__(self) -> None:
        self.expect("at least 1", "r")
        self.expect("a positive number", "lora_alpha")
        self.expect("a share from 0 to below 1", "lora_dropout")
        if not self.target_modules:
            raise UserError("target_modules: expected the names of linear layers, got none")

    @classmethod
    def read(cls, path: Path) -> SavedLora:
        """Read a file. Raises UserError for a key or a value that is not applied, before peft or a layer receives it."""
        plain = read_object(path)
        known = {field.name for field in fields(cls)}
        for key, value in plain.items():
            described = key in DESCRIPTIONS and isinstance(value, str | bool | None)
            if key not in known and not described and value and value != DEFAULTS.get(key):
                raise UserError(f"{path}: {key}: expected none, since only plain LoRA is applied; got {str(value)[:60]!r}")
        try:
            return build(cls, {key: value for key, value in plain.items() if key in known})
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _check_shapes(path: Path, name: str, weight: Tensor, expected: tuple[int, int]) -> None:
    if weight.shape != expected or not weight.is_floating_point():
        got = f"{tuple(weight.shape)} of {weight.dtype}"
        raise UserError(f"{path}: {name}: expected the shape {expected}, as r and the base model describe, got {got}")


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers that LoRA can change by name: linear ones that are called, and share no weights with word vectors."""
    vectors = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    named = ((name, module) for name, module in model.named_modules() if type(module) is nn.Linear)  # no layer of its own kind
    return {name: layer for name, layer in named if id(layer.weight) not in vectors}


def target_layers(model: PreTrainedModel, targets: tuple[str, ...]) -> list[str]:
    """Return the names of the layers that ``targets`` name, by default the query and value projections.

    Raises:
        UserError: a target names no linear layer; there are no targets, and the backbone names no projections.
    """
    layers = linear_layers(model)
    parts = {part for name in layers for part in name.split(".") if not part.isdecimal()}
    chosen = targets or _projections(model)
    if not chosen:
        backbone: Any = _backbone(model)
        backbone = model.config.model_type if backbone is None else plain_name(type(backbone))
        needed = f"expected names of linear layers, since {backbone!r} does not name its query and value projections"
        raise UserError(f"adapter.targets: {needed}; choose from {', '.join(sorted(parts))}")
    found = {target: [name for name in layers if f".{target}." in f".{name}."] for target in chosen}
    if (missing := next((target for target, names in found.items() if not names), None)) is not None:
        raise UserError(f"adapter.targets: no linear layer of this model is called {missing!r}{nearest(missing, parts)}")
    return sorted({name for names in found.values() for name in names})


def _projections(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of the query and value projections: the backbone's own, or for models of transformers those of peft."""
    if (backbone := _backbone(model)) is not None:
        return tuple(backbone.projections)
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    return tuple(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type, ()))


def _backbone(model: PreTrainedModel) -> Any:
    """Return the backbone of the library's own models, None for networks of transformers."""
    return getattr(getattr(model, "settings", None), "backbone", None)
