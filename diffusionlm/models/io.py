"""Reading model folders: safetensors and JSON only."""

from __future__ import annotations

import hashlib
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from diffusionlm.config import FORMAT_VERSION, Settings, UserError, build, nearest, upgraded
from diffusionlm.data.folders import check_folder, damage_errors, is_folder, load_folder, read_object, refuse_peft
from diffusionlm.data.tokenizers import SOURCES, check_ids, join_sources, load_tokenizer
from diffusionlm.models.adapters import FILE, SavedAdapter, check_complete, saved_adapter
from diffusionlm.models.conditions import condition_of
from diffusionlm.models.hub import why_local
from diffusionlm.models.named import bundled_models, named_folder

P = TypeVar("P", bound=PreTrainedModel)
Whole = Annotated[int, pydantic.Strict(), pydantic.Field(ge=0)]
Text = Annotated[str, pydantic.Strict()]


SpecialToken = Literal["pad", "unk", "start", "end"]


@dataclass(frozen=True, kw_only=True)
class SavedConfig(Settings):
    """What ``config.json`` of the library's own models has to hold and may hold; a subclass names the keys of a family.

    A family's config class names it as ``saved``, and as ``place`` where its old settings stand in ``config.RENAMED``.
    """

    model_type: Text
    format_version: Whole
    settings: dict[str, Any]
    vocabulary: Whole
    max_tokens: Whole
    architectures: list[Text] | None = None
    dtype: Text | None = None
    torch_dtype: Text | None = None
    transformers_version: Text | None = None

    def __post_init__(self) -> None:
        self.expect("at least 1", "vocabulary", "max_tokens")
        if not self.settings:
            raise UserError("settings: expected the settings that the model was trained with, got none")


def model_folder(folder: str | Path) -> Path:
    """Return the model folder that ``folder`` names: itself, ``model/`` in the folder of a run, or one of ``named_folder``."""
    found = named_folder(folder)
    inner = found / "model"
    within = is_folder(inner) and not (found / "config.json").exists() and (inner / "config.json").exists()
    return inner if within else found


def fingerprint(folder: str | Path) -> str:
    """Return a hash of a model's weights, config and tokenizers, which differs after the model is trained again."""
    digest = hashlib.sha256()
    model = model_folder(folder)
    for path in sorted([*model.glob("*"), *model.glob(f"{SOURCES}/tokenizer.json")]):
        if path.suffix == ".safetensors" or path.name in ("config.json", "tokenizer.json", "adapter.json"):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def load_pretrained(kind: type[P], folder: str | Path, base: str | Path | None = None) -> P:
    """Load a model folder of the class ``kind``, from safetensors and JSON only; ``base`` as in ``read_model``.

    Raises:
        UserError: the folder is missing or damaged, or holds another family or a newer format.
    """
    check_config(kind.config_class, model_config(folder), Path(folder) / "config.json")
    model: P = read_model(kind, kind.config_class, folder, base)
    return model


def read_model(kind: Any, config: Any, folder: str | Path, base: str | Path | None = None) -> Any:
    """Return the model in ``folder``, of the class ``kind`` with a config of the class ``config``.

    An adapter's model is its base, from the recorded folder or from ``base``, with the adapter's weights and config.

    Raises:
        UserError: a folder is missing or damaged, or the adapter is that of another base model.
    """
    saved = saved_adapter(Path(folder), None if base is None else model_folder(base))
    if saved is None:
        return read_weights(kind, folder, folder)
    model = _base_of(saved, kind, load_folder(config, folder))
    with damage_errors(folder):
        adapted = saved.adapter.load(model, Path(folder))
    check_finite(adapted, folder)
    return adapted


def _base_of(saved: SavedAdapter, kind: Any, config: Any) -> Any:
    """Return the base model of an adapter, with the adapter's ``config``.

    Raises:
        UserError: it is another model than the adapter was trained on, or an adapter itself.
    """
    base = model_folder(saved.base)
    check_complete(base, f"{saved.folder / FILE}: base")
    expected, got = (model_config(each).get("model_type") for each in (saved.folder, base))
    if expected != got:
        raise UserError(f"{saved.folder}: this adapter is for a model of the family {expected!r}, and {base} is {got!r}")
    try:
        model = read_weights(kind, saved.folder, base, config=config)
    except UserError:
        saved.check_base(read_weights(kind, base, base))  # of another size
        raise
    saved.check_base(model)
    return model


def model_config(folder: str | Path) -> dict[str, Any]:
    """Return ``config.json`` of a model folder. Raises UserError where it is missing or damaged."""
    if not is_folder(folder):
        bundled = bundled_models()
        known = nearest(str(folder), bundled, listed=False)
        known = known or (f"; models that come with the package: {', '.join(bundled)}" if bundled else "")
        raise UserError(f"{folder}: expected a model folder, but there is none{why_local(str(folder))}{known}")
    if not (Path(folder) / "config.json").exists():
        raise UserError(f"{folder}: expected a model folder, but it has no config.json")
    return read_object(Path(folder) / "config.json")


def check_config(config: Any, plain: Mapping[str, Any], path: Path) -> None:
    """Raise UserError where ``plain``, read from ``path``, is not of the family of ``config``, is newer, or lacks something."""
    if plain.get("model_type") != config.model_type:
        found = plain.get("model_type")
        raise UserError(f"{path}: expected model_type {config.model_type!r}, got {found!r}; this is another model family")
    version = plain.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise UserError(f"{path}: format_version: expected a whole number up to {FORMAT_VERSION}, got {version!r}")
    if version > FORMAT_VERSION:
        raise UserError(f"{path}: format {version} is newer than this library reads ({FORMAT_VERSION}); update the library")
    try:
        build(config.saved, upgraded(plain, config.place) if version == 1 else plain)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_weights(kind: Any, folder: str | Path, weights: str | Path, **given: Any) -> Any:
    """Return the model in ``folder``, with the weights in the folder ``weights``, from safetensors and JSON only.

    Raises:
        UserError: they are missing or damaged, are not all that the config describes, or more, or not finite.
    """
    check_folder(Path(folder))
    refuse_peft(Path(weights))
    safe: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, "dtype": torch.float32}
    with _no_bar():
        model, report = load_folder(kind, weights, **safe, **given)
    if wrong := sorted(report["missing_keys"]) + sorted(report["unexpected_keys"]):
        differ = f"{wrong[0]} and {len(wrong) - 1} more differ" if wrong[1:] else f"{wrong[0]} differs"
        raise UserError(f"{folder}: the weights do not fit the config: {differ}")
    check_finite(model, weights)
    return model


@contextmanager
def _no_bar() -> Iterator[None]:
    """Show no progress bar of transformers inside the context."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[SpecialToken, int]:
    """Return the ids of PAD, the unknown token, BOS and EOS, without those that the tokenizer lacks."""
    ids: dict[SpecialToken, int | None] = {"pad": tokenizer.pad_token_id, "unk": tokenizer.unk_token_id}
    ids |= {"start": tokenizer.bos_token_id, "end": tokenizer.eos_token_id}
    return {name: i for name, i in ids.items() if i is not None}


def check_special_ids(ids: Mapping[SpecialToken, int], vocabulary: int) -> None:
    """Raise UserError where PAD, BOS or EOS has no id, an id is beyond the vocabulary, or two of them share one.

    A model whose BOS is its EOS would end each text before its first word.
    """
    if not {"pad", "start", "end"} <= ids.keys():
        raise UserError(f"special_ids: expected ids of pad, start and end, got {', '.join(ids) or 'none'}")
    if max(ids.values()) >= vocabulary:
        raise UserError(f"special_ids: expected ids below the vocabulary of {vocabulary}, got {max(ids.values())}")
    if len({*ids.values()}) < len(ids):
        names = [name for name in typing.get_args(SpecialToken) if name in ids]
        shared = next(f"{a} and {b}" for a, b in combinations(names, 2) if ids[a] == ids[b])
        raise UserError(f"special_ids: expected another id for each, but {shared} are one token")


def model_tokenizer(model: PreTrainedModel, folder: str | Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer in the ``folder`` of a ``model``, with that of its sources where these have their own.

    Raises:
        UserError: one is missing or damaged, or is that of another model.
    """
    tokenizer, sources = load_tokenizer(Path(folder)), Path(folder) / SOURCES
    check_tokenizer(tokenizer, model, folder)
    condition, expected = condition_of(model), getattr(model.config, "source_vocabulary", None)
    if condition is None or condition.with_own_tokenizer is None:
        if sources.exists() or expected is not None:
            raise UserError(f"{sources}: expected no tokenizer of sources, since this model's settings name none")
        return tokenizer
    if not is_folder(sources):
        raise UserError(f"{sources}: expected the tokenizer of this model's sources, but there is no such folder")
    own = load_tokenizer(sources)
    if len(own) != expected:
        raise UserError(f"{sources}: the tokenizer has {len(own)} tokens, the model's encoder of sources {expected}")
    check_ids(own, sources)
    join_sources(tokenizer, own)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel, folder: str | Path) -> None:
    """Raise UserError where a tokenizer's tokens are not those of ``model``, or the special tokens differ."""
    if len(tokenizer) != model.config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size}")
    check_ids(tokenizer, folder)
    ids = special_ids(tokenizer)
    expected = getattr(model.config, "special_ids", ids)
    for name in typing.get_args(SpecialToken):
        if expected.get(name) != ids.get(name):
            raise UserError(
                f"{folder}: special_ids: the model's {name} is {expected.get(name)}, the tokenizer's {ids.get(name)}"
            )


def check_finite(model: PreTrainedModel, folder: str | Path) -> None:
    """Raise UserError where a weight is NaN or infinite: every figure and every text would be worthless."""
    if name := not_finite(model.state_dict().items()):
        raise UserError(f"{folder}: expected finite weights, but {name} holds NaN or infinity; the model is damaged")


def not_finite(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first of the named ``weights`` that holds NaN or infinity."""
    return next((name for name, weight in weights if not bool(weight.isfinite().all())), None)
