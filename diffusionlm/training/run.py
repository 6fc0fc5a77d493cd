"""A training run as a plain function: a config and a folder in, a trained model in the folder out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.config import FORMAT_VERSION, Settings, UserError, build, merge, override, read_yaml, to_plain, upgraded
from diffusionlm.core.objective import ObjectiveConfig
from diffusionlm.data.batches import DataConfig, Encoded, encode
from diffusionlm.data.tokenizers import load_tokenizer
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.models.io import model_folder
from diffusionlm.models.spec import ModelSpec
from diffusionlm.pipelines.auto import pipeline_of
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.recipe.cross_entropy import CrossEntropy
from diffusionlm.training.checkpoints import disk_errors
from diffusionlm.training.trainer import DiffusionTrainer, TrainingConfig


@dataclass(frozen=True)
class RunConfig(Settings):
    """All of a run: what is learned from, the model, its objective, how it is trained and sampled.

    ``init_from`` is a model's folder, or its run's, whose weights and tokenizer the run starts from (fine-tuning).
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelSpec = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=CrossEntropy)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    init_from: str | None = None


def read_config(paths: Sequence[str | Path] = (), assignments: Sequence[tuple[str, str]] = ()) -> RunConfig:
    """Lay YAML files, then dotted overrides, over the defaults.

    Raises:
        UserError: a missing file, an unknown key or component, a wrong type.
    """
    given: dict[str, Any] = {}
    for path in paths:
        try:
            given = merge(given, _read_plain(Path(path)))
        except OSError as error:
            raise UserError(f"{path}: cannot read this config: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UserError(f"{path}: this config is not text") from None
    # Built once without the overrides, so that one may change a single field of a default component.
    plain = to_plain(build(RunConfig, given))
    return build(RunConfig, override(plain, assignments))


def _read_plain(path: Path) -> dict[str, Any]:
    """Read a YAML file; a run's ``config.yaml`` of format 1 under the names of this format."""
    plain = read_yaml(path.read_text(), str(path))
    of_a_run = path.name == "config.yaml" and (path.with_name("data.json").exists() or path.with_name("log.jsonl").exists())
    version = plain.pop("format_version", 1 if of_a_run else FORMAT_VERSION)
    return upgraded(plain) if version == 1 else plain


def train(
    config: RunConfig, folder: str | Path, *, show_texts: bool = False, write_samples: bool = True, quiet: bool = False
) -> bool:
    """Train in ``folder``, or go on there where an earlier call was stopped; return whether training is complete.

    ``show_texts`` shows sample texts as they are written; ``quiet`` shows no progress.

    Raises:
        UserError: the folder holds another run or cannot be written; the data, the vocabulary or a setting are wrong.
    """
    folder = Path(folder)
    if (folder / "model" / "finished").exists() and _same_config(config, folder):
        print(f"{folder} is already trained; choose another --out to train anew", file=sys.stderr)
        return True
    config.objective.check(config.model)
    _refuse_another(config, folder)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    torch.manual_seed(config.training.seed)
    splits = config.data.corpus.load()
    config.model.check_data(splits)
    tokenizer, model = _start_from(config, splits["train"]["text"][:])
    encoded = {
        split: _encode(rows["text"][:], split, tokenizer, config.data) for split, rows in splits.items() if split != "test"
    }
    rows = config.model.rows(encoded, splits, tokenizer)
    train_rows, validation_rows = rows["train"], rows.get("validation", [])
    if model is None:
        model = config.model.make(tokenizer, train_rows, config.data.max_length)
    writes = config.model.generates
    if writes:
        model.config.length_counts = torch.bincount(torch.tensor([len(row) for row in train_rows])).tolist()
        pipeline_of(model)(model, tokenizer, config.sampling).check(config.sampling)
    objective = config.objective.build(model)
    config.training.check(train_rows, validation_rows, objective.width)
    claim(config, folder, train_rows)

    def export(averaged: PreTrainedModel) -> None:
        save_model(averaged, tokenizer, config.sampling if writes else None, folder / "model")

    def sampled(averaged: PreTrainedModel) -> list[str]:
        return pipeline_of(averaged)(averaged, tokenizer, config.sampling).preview(10)

    trainer = DiffusionTrainer(
        objective, config.training, folder, train_rows, validation_rows,
        write_samples=sampled if write_samples and writes else None, export=export, show_texts=show_texts, quiet=quiet,
    )  # fmt: skip
    done = trainer.run()
    if done and trainer.is_world_process_zero():
        if (told := trainer.averaged.report(validation_rows, folder)) and not quiet:
            print(told, file=sys.stderr)
        export(trainer.averaged_model())  # a run that was stopped between its last checkpoint and this has an older one
        (folder / "model" / "finished").write_text(f"{trainer.state.global_step} steps\n")
    return done


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, sampling: SamplingConfig | None, folder: Path
) -> None:
    """Write a model folder with its tokenizer and its sampling defaults if any, file by file, each replaced whole.

    Raises:
        UserError: it cannot be written; the files that were there are whole.
    """
    staged = folder.with_name(f"{folder.name}.new")
    with disk_errors(folder):
        try:
            staged.mkdir(parents=True, exist_ok=True)
            model.save_pretrained(staged)
            tokenizer.save_pretrained(staged)
            if sampling is not None:
                (staged / "sampling.json").write_text(
                    json.dumps({"format_version": FORMAT_VERSION, **to_plain(sampling)}, indent=2) + "\n"
                )
            folder.mkdir(exist_ok=True)
            for file in sorted(staged.iterdir()):
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _start_from(config: RunConfig, texts: list[str]) -> tuple[PreTrainedTokenizerFast, PreTrainedModel | None]:
    """Return the tokenizer, and the model to fine-tune if there is one."""
    if config.init_from is None:
        return config.model.tokenizer(config.data, texts), None
    start = model_folder(config.init_from)
    model, tokenizer = config.model.load(start), load_tokenizer(start)
    if config.data.tokenizer != DataConfig().tokenizer:
        wanted = config.data.tokenizer.make(texts, config.data.max_length)
        if wanted.get_vocab() != tokenizer.get_vocab():
            sizes = f"{len(tokenizer)} words there, {len(wanted)} here"
            raise UserError(f"init_from: the vocabulary of {config.init_from} is not that of data.tokenizer ({sizes})")
    if config.data.max_length > model.config.max_position_embeddings:
        raise UserError(f"data.max_length: {config.init_from} reads up to {model.config.max_position_embeddings} tokens")
    if not config.model.describes(model):
        raise UserError(f"model: expected the settings of {config.init_from}; take its run's config.yaml as --config")
    return tokenizer, model


def _encode(texts: list[str], split: str, tokenizer: PreTrainedTokenizerFast, data: DataConfig) -> Encoded:
    encoded = encode(texts, tokenizer, data.max_length, data.too_long)
    if encoded.too_long:
        verb = {"truncate": "cut", "split": "split", "drop": "dropped"}[data.too_long]
        limit = f"{data.max_length} tokens"
        print(
            f"{split}: {encoded.too_long} of {len(texts)} texts are longer than {limit} and were {verb}",
            file=sys.stderr,
        )
    if encoded.empty:
        print(f"{split}: {encoded.empty} empty texts were skipped", file=sys.stderr)
    return encoded


def _refuse_another(config: RunConfig, folder: Path) -> None:
    """Check that the folder is new, empty, or holds a run of the same config."""
    path = folder / "config.yaml"
    if path.exists():
        if not _same_config(config, folder):
            raise UserError(f"{folder}: holds another run ({_difference(config, path)}); choose another --out")
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: expected an empty or new folder, or a run's, but it holds other files")


def claim(config: RunConfig, folder: Path, rows: Sequence[list[int]] | None = None) -> None:
    """Write a run's config, and what its training ``rows`` are, into its folder, unless they are there; ``train`` begins there.

    Raises:
        UserError: the run began with other rows; a full disk, say.
    """
    files = {
        "config.yaml": yaml.safe_dump(
            {"format_version": FORMAT_VERSION, **to_plain(config)}, sort_keys=False, allow_unicode=True
        )
    }
    if rows is not None:
        digest = hashlib.sha256(b"".join(numpy.array([len(row), *row], numpy.int32).tobytes() for row in rows)).hexdigest()
        files["data.json"] = json.dumps({"training_texts": len(rows), "sha256": digest}) + "\n"
        path = folder / "data.json"
        if path.exists() and path.read_text() != files["data.json"]:
            raise UserError(f"{folder}: the training texts are not those that this run began with; choose another --out")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            if not (folder / name).exists():
                staged = folder / f"{name}.{os.getpid()}.new"  # of several processes each has its own
                staged.write_text(text)
                staged.replace(folder / name)


def _same_config(config: RunConfig, folder: Path) -> bool:
    with suppress(UserError, OSError):
        return read_config([folder / "config.yaml"]) == config
    return False


def _difference(config: RunConfig, path: Path) -> str:
    """Name the first setting in which a run's config differs."""
    old, new = _flat(to_plain(read_config([path]))), _flat(to_plain(config))
    for key in [*new, *old]:
        if old.get(key) != new.get(key):
            return f"its {key} is {old.get(key)}, not {new.get(key)}"
    return "its config cannot be compared"


def _flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
