"""Uploads of models to the Hugging Face hub: the safe files of a model folder, with its card, in one commit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from diffusionlm.config import UserError, read_yaml
from diffusionlm.data.folders import OBJECTS, check_folder, is_folder, read_object
from diffusionlm.data.tokenizers import SOURCES
from diffusionlm.files import read_text, write_text
from diffusionlm.models.adapters import FILE
from diffusionlm.models.card import CARD, current_card, is_edited, portable, run_of
from diffusionlm.models.hub import HUB, Repository, downloaded, parsed, reason
from diffusionlm.models.io import model_folder
from diffusionlm.models.named import bundled_models
from diffusionlm.progress import say

UPLOADED = (".safetensors", ".json")
CLASSIFIERS = "classifiers"
OWN = re.compile(rf"({CLASSIFIERS}|{SOURCES})/.*|[^/]*\.safetensors(\.index\.json)?")  # is removed where a later model lacks it


def publish(folder: Path, name: str, private: bool = False, token: str | None = None, base: str | None = None) -> str:
    """Upload a model folder into the repository ``name`` of the hub, ``user/model``, which is made; return its address.

    The files are the weights, configs, tokenizers and sampling settings in safetensors and JSON, the classifiers, the settings
    of the run without paths of this machine, and the card, whose figures are brought up to date. ``base`` is the name on the
    hub of the model that an adapter was trained on. A card that was edited in the repository stays, unless that in ``folder``
    was too.

    Raises:
        UserError: no name of a repository; a folder without weights in safetensors, or that names code; an adapter of a model
            that only this machine has; a public repository is to be ``private``; the hub cannot be reached, or refuses it.
    """
    wanted = parsed(name)
    if wanted is None or wanted.revision is not None:
        raise UserError(f"{name}: expected the name of a repository of {HUB}, user/model")
    base = _base_of(folder, base)
    card = current_card(folder, name, base)
    files = {**dict(_files(folder, base)), CARD: card.encode()}
    address = _commit(files, wanted, private, token)
    if run_of(folder) is not None:
        write_text(folder / CARD, card)
    downloaded.cache_clear()
    return address


def _base_of(folder: Path, base: str | None) -> str | None:
    """Return the name by which others find the base model of the adapter in ``folder``; None for a complete model."""
    if not (folder / FILE).exists():
        if base is not None:
            raise UserError(f"base: {folder} holds a complete model, not an adapter of {base}; leave it out")
        return None
    found = base or str(read_object(folder / FILE)["base"])
    if found in bundled_models() or (parsed(found) is not None and not is_folder(folder / found)):
        return found
    cure = "push that model too, and name it: --base user/model"
    raise UserError(f"base: {folder} holds an adapter of {found}, which is not on the hub; {cure}")


def _files(folder: Path, base: str | None) -> Iterator[tuple[str, Path | bytes]]:
    """Yield the files to upload, by their names in the repository."""
    check_folder(folder)
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: expected a model folder, but it has no weights in safetensors")
    yield from _safe(folder, "")
    yield from _safe(folder / SOURCES, f"{SOURCES}/")
    for classifier in sorted((folder / CLASSIFIERS).glob("*")):
        yield from _safe(model_folder(classifier), f"{CLASSIFIERS}/{classifier.name}/")
    if base is not None:
        yield FILE, _json({**read_object(folder / FILE), "base": base})
    path = (run_of(folder) or folder) / "config.yaml"
    if path.exists():
        settings = portable(read_yaml(read_text(path), str(path)))
        yield "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode()


def _safe(folder: Path, prefix: str) -> Iterator[tuple[str, Path | bytes]]:
    """Yield the safetensors and JSON files of a folder, its config without paths of this machine.

    Raises UserError where one names code.
    """
    for path in sorted(folder.glob("*")):
        if not path.is_file() or path.suffix not in UPLOADED:
            continue
        plain = read_object(path) if path.name in OBJECTS else {}
        if "auto_map" in plain:
            raise UserError(f"{path}: auto_map: expected none, since it names Python code, which is not uploaded")
        changed = path.name == "config.json" and portable(plain) != plain
        yield f"{prefix}{path.name}", _json(portable(plain)) if changed else path


def _json(plain: Any) -> bytes:
    return (json.dumps(plain, indent=2) + "\n").encode()


def _commit(files: dict[str, Path | bytes], wanted: Repository, private: bool, token: str | None) -> str:
    """Write ``files`` into a repository, and remove what an earlier model has left; return its address."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, path = HfApi(token=token), wanted.path
    try:
        address = str(api.create_repo(path, private=private or None, exist_ok=True))
        there = api.model_info(path)
        if private and not there.private:
            raise UserError(f"{path}: this repository is public; make it private at {address}/settings, or choose another name")
        old = {file.rfilename for file in there.siblings or ()}
        card = files[CARD]
        if CARD in old and isinstance(card, bytes) and not is_edited(card.decode()):
            if is_edited(read_text(api.hf_hub_download(path, CARD))):
                say(
                    f"{path}: the card in this repository was edited, so it stays; delete {CARD} there to have it written again"
                )
                del files[CARD]
        added = [CommitOperationAdd(name, file) for name, file in files.items()]
        removed = [CommitOperationDelete(name) for name in sorted(old - {*files}) if OWN.fullmatch(name)]
        api.create_commit(path, [*added, *removed], commit_message="Upload a model of diffusionlm")
    except UserError:
        raise
    except Exception as error:  # its HTTP library has errors of its own
        raise UserError(f"{path}: the model was not uploaded: {reason(error, wanted)}") from None
    return address
