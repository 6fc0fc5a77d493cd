"""Models of the Hugging Face hub: which names are those of its repositories, and their download.

A model is downloaded as safetensors, JSON, YAML and text. Other files of its repository, such as pickled weights and Python,
are not, so that no code of a repository can run.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from diffusionlm.config import UserError
from diffusionlm.progress import say

DOWNLOADED = ("*.safetensors", "*.json", "*.yaml", "*.txt", "*.md")
HUB = "the Hugging Face hub"
_NAME = re.compile(r"(?P<path>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")


class Repository(NamedTuple):
    """A model of the hub, ``user/model``, and the revision (branch, tag or commit) of it; None is the newest."""

    path: str
    revision: str | None = None


def repository(name: str | Path) -> Repository | None:
    """Return the repository that ``name``, ``user/model`` or ``user/model@revision``, can stand for; None for none.

    A path object names none, nor does a name whose first part is something on this machine: it is a path that was mistyped.
    """
    found = parsed(name) if isinstance(name, str) else None
    return None if found is None or _first_part(found).exists() else found


def why_local(name: str) -> str:
    """Return why a ``name`` that has the form of a repository's is not sought on the hub; "" where it has not, or is."""
    found = parsed(name)
    return f" ({_first_part(found)} is here, so that {HUB} is not searched)" if found and _first_part(found).exists() else ""


def parsed(name: str) -> Repository | None:
    """Return the repository that ``name`` would name if nothing here had that name; None where it has another form."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if (found := _NAME.fullmatch(name)) is None:
        return None
    try:
        validate_repo_id(found["path"])
    except HFValidationError:
        return None
    return Repository(found["path"], found["revision"])


def _first_part(wanted: Repository) -> Path:
    return Path(wanted.path.partition("/")[0])


@lru_cache
def downloaded(wanted: Repository) -> Path:
    """Return the cached folder of a model of the hub, downloaded where the cache lacks it: once in a process.

    Of several processes the first downloads each file, and the others wait for it: the library of the hub locks them.

    Raises:
        UserError: there is no such repository or revision, it holds no model in safetensors, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    name = wanted.path if wanted.revision is None else f"{wanted.path}@{wanted.revision}"
    try:
        folder = Path(snapshot_download(wanted.path, revision=wanted.revision, allow_patterns=[*DOWNLOADED]))
    except Exception as error:  # its HTTP library has errors of its own
        raise UserError(f"{name}: there is no such folder here, and {reason(error, wanted)}") from None
    for file in ("config.json", "*.safetensors"):
        if not any(folder.glob(file)):
            raise UserError(f"{name}: this repository of {HUB} holds no {file}; other weights, and code, are not downloaded")
    say(f"{name}: revision {folder.name[:12]} from {HUB}")
    return folder


def cached(wanted: Repository) -> Path | None:
    """Return the folder of a model of the hub that was downloaded before; None where it was not."""
    from huggingface_hub import snapshot_download

    try:
        patterns = [*DOWNLOADED]
        return Path(snapshot_download(wanted.path, revision=wanted.revision, allow_patterns=patterns, local_files_only=True))
    except OSError:
        return None


def reason(error: Exception, wanted: Repository) -> str:
    """Say why a repository of the hub cannot be read or written."""
    from huggingface_hub import constants, errors

    place = f"{HUB} ({constants.ENDPOINT})"
    if isinstance(error, errors.GatedRepoError):
        return f"{place} has {wanted.path} for users with access alone; ask for it on its page, and log in: hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{place} has no model {wanted.path}, or a private one, for which you log in: hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{place} has no revision {wanted.revision!r} of {wanted.path}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{place} cannot be reached (are you offline?), nor was {wanted.path} downloaded before"
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"{place} does not allow it; log in with a token that may write: hf auth login"
    return f"{place} cannot be used: {str(error).strip().partition(chr(10))[0][:200] or type(error).__name__}"
