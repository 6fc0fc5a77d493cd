"""Reading model folders: safetensors and JSON only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from diffusionlm.config import FORMAT_VERSION, UserError
from diffusionlm.models.adapters import saved_adapter

P = TypeVar("P", bound=PreTrainedModel)


def model_folder(folder: str | Path) -> Path:
    """Return the model folder in ``folder``: itself, or ``model/`` in the folder of a run."""
    inner = Path(folder) / "model"
    return inner if not (Path(folder) / "config.json").exists() and (inner / "config.json").exists() else Path(folder)


def load_pretrained(kind: type[P], folder: str | Path) -> P:
    """Load a model folder of the class ``kind``, from safetensors and JSON only.

    Raises:
        UserError: the folder is missing or damaged, or holds another family or a newer format.
    """
    path, wanted = Path(folder) / "config.json", getattr(kind.config_class, "model_type", "")
    try:
        plain = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: expected a model folder, but it has no config.json") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: the model's config cannot be read: {error}") from None
    if not isinstance(plain, dict) or plain.get("model_type") != wanted:
        found = plain.get("model_type") if isinstance(plain, dict) else plain
        raise UserError(f"{path}: expected model_type {wanted!r}, got {found!r}; this is another model family")
    if not isinstance(plain.get("format_version"), int) or plain["format_version"] > FORMAT_VERSION:
        found = plain.get("format_version")
        raise UserError(f"{path}: format {found} is newer than this library reads ({FORMAT_VERSION}); update the library")
    with damage_errors(folder):
        adapter, base = saved_adapter(Path(folder))
        config_class: Any = kind.config_class
        given = {} if adapter.complete else {"config": config_class.from_pretrained(folder)}
    model: P = read_weights(kind, folder, model_folder(base), **given)
    return adapter.load(model, Path(folder))


@contextmanager
def damage_errors(folder: str | Path) -> Iterator[None]:
    """Turn a failure to read the model in ``folder`` into a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{Path(folder) / 'config.json'}: {error}") from None
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder}: the model is damaged or incomplete: {' '.join(str(error).split())[:300]}") from None


def read_weights(kind: Any, folder: str | Path, weights: str | Path, **given: Any) -> Any:
    """Return the model in ``folder``, with the weights in the folder ``weights``, from safetensors and JSON only."""
    safe = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    with damage_errors(folder):
        model, report = kind.from_pretrained(str(weights), output_loading_info=True, dtype=torch.float32, **safe, **given)
    if wrong := sorted(report["missing_keys"]) + sorted(report["unexpected_keys"]):
        raise UserError(f"{folder}: the weights do not fit the config: {wrong[0]} and {len(wrong) - 1} more differ")
    return model
