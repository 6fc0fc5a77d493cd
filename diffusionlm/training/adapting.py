"""Runs that start from a model: its settings; for adapters its digest in the run's folder, and the share of trained weights."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel

from diffusionlm.config import UserError, build_untrusted, plain_name, to_plain
from diffusionlm.files import read_json, write_text
from diffusionlm.models.adapters import Adapter, P, check_complete, saved_adapter, trained_share, weights_digest
from diffusionlm.models.io import model_config, model_folder
from diffusionlm.models.spec import ModelSpec
from diffusionlm.processes import is_first

BASE = "base.json"  # in the folder of a run that trains an adapter


def settings_of(base: str) -> dict[str, Any]:
    """Return the plain ``model`` settings of a model folder; {} where there are none, which its loading will report."""
    with suppress(UserError):
        plain = model_config(model_folder(base)).get("settings")
        return {} if plain is None else {"model": to_plain(build_untrusted(ModelSpec, plain))}
    return {}


def check_start(base: Path) -> None:
    """Raise UserError where the model folder ``base`` holds an adapter that cannot be merged into its own base."""
    if (saved := saved_adapter(base)) is not None and not saved.adapter.merges:
        name = plain_name(type(saved.adapter))
        raise UserError(f"init_from: {base} holds a {name!r} of {saved.base}, which a run cannot start from; take its base")


def adapt(model: P, adapter: Adapter, base: str | None) -> P:
    """Return the model to train: ``model``, from the folder ``base`` if it is not new, with only the adapter's weights trained.

    Where the adapter saves no complete model, ``base_sha256`` of the result is the digest of the weights before.

    Raises:
        UserError: the base is an adapter itself; the adapter does not fit the model.
    """
    if base is not None and not adapter.complete:
        check_complete(model_folder(base), "init_from")
        cast(Any, model).base_sha256 = weights_digest(model)
    return adapter.wrap(model)


def begin_adapter(model: PreTrainedModel, base: str | None, folder: Path, quiet: bool) -> None:
    """Write the digest of the ``base`` model into a run's ``folder``, unless it is there, and print the trained share.

    Does nothing for a model that ``adapt`` left complete.

    Raises:
        UserError: the run started from other weights; the folder cannot be written.
    """
    if (digest := getattr(model, "base_sha256", None)) is None:
        return
    path = folder / BASE
    if not path.exists():
        write_text(path, json.dumps({"sha256": digest}) + "\n")
    elif read_json(path) != {"sha256": digest}:
        raise UserError(f"{folder}: the weights of {base} differ from those that this run started from; choose another --out")
    if not quiet and is_first():
        percent = 100 * trained_share(model)
        print(f"adapter: {percent:{'.0f' if percent > 10 else '.2g'}} % of the weights are trained", file=sys.stderr)
