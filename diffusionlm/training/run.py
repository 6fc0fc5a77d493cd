"""Training runs: ``train(config, folder)`` trains a model in a run folder, or resumes the run that is there."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.allocator import keep_few_shapes
from diffusionlm.config import (
    FORMAT_VERSION,
    Settings,
    UserError,
    build,
    build_untrusted,
    merge,
    override,
    plain_name,
    read_yaml,
    to_plain,
    upgraded,
)  # fmt: skip
from diffusionlm.core.objective import ObjectiveConfig
from diffusionlm.data.batches import DataConfig
from diffusionlm.data.reading import read_text
from diffusionlm.data.rows import TokenRows, digest_of
from diffusionlm.data.tokenizers import of_sources, save_tokenizer, tokenizer_digest
from diffusionlm.files import LOCK, read_json, write_folder, write_text
from diffusionlm.models.adapters import Adapter, Full, save_adapted
from diffusionlm.models.card import write_card
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.models.io import model_folder, model_tokenizer
from diffusionlm.models.pieces import check_rows, count_lengths
from diffusionlm.models.spec import ModelSpec, Rows
from diffusionlm.pipelines.auto import pipeline_of
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.progress import say
from diffusionlm.recipe.cross_entropy import CrossEntropy
from diffusionlm.training.adapting import adapt, begin_adapter, check_start, settings_of
from diffusionlm.training.checkpoints import check_finite, locked, unclaimed_if_refused
from diffusionlm.training.extending import VocabularyExtension, find_new_words
from diffusionlm.training.texts import (
    Copies,
    add_source_tokenizer,
    check_stream,
    encode_splits,
    keep_typical,
    report_unknown_sources,
    streamed,
)
from diffusionlm.training.tracking import check_trackers
from diffusionlm.training.trainer import DiffusionTrainer, TrainingConfig

SHELL = (".log", ".out", ".err", ".txt")  # files that the user's shell may keep in a run folder: none of a run's own


@dataclass(frozen=True)
class RunConfig(Settings):
    """The settings of a run.

    Args:
        data: the training texts, and how they become tokens.
        model: the model, by the name of its family; ``objective`` is its loss.
        training: how the model is trained; likewise ``sampling``, during the run and later by default.
        init_from: a model or run folder whose weights and tokenizer the run starts from (fine-tuning).
        adapter: the part of the model that is trained and saved.
        extend_vocabulary: words of the corpus that are added to the model of ``init_from``.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelSpec = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=CrossEntropy)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    init_from: str | None = None
    adapter: Adapter = field(default_factory=Full)
    extend_vocabulary: VocabularyExtension = field(default_factory=VocabularyExtension)

    def __post_init__(self) -> None:
        if self.data.source is not None:
            object.__setattr__(self, "model", self.model.with_source(self.data.source))  # frozen for everyone else

    def check(self) -> None:
        """Raise UserError where the settings do not go together."""
        self.objective.check(self.adapter.adapted(self.model) if self.adapter.adds_joint else self.model)
        if self.objective.trains_joint and self.init_from is None:
            raise UserError("init_from: expected a trained model, whose joint head is trained; see: diffusionlm distill --help")
        if self.objective.trains_joint and not (self.adapter.complete or self.adapter.adds_joint):
            name = plain_name(type(self.adapter))
            raise UserError(f"adapter: {name!r} would not save the joint head, which is saved with all weights; leave it out")
        if self.adapter.adds_joint and not self.objective.trains_joint:
            name = plain_name(type(self.objective))
            raise UserError(f"adapter: 'joint-head' is trained by diffusionlm distill, and not by the objective {name!r}")
        if getattr(self.model, "joint_width", None) and not self.objective.trains_joint:
            name = plain_name(type(self.objective))
            raise UserError(
                f"objective: {name!r} would leave the joint head behind the model that it is made for; train the model without "
                "joint_width, and its joint head afterwards: diffusionlm distill"
            )
        if not self.adapter.complete and self.init_from is None:
            name = plain_name(type(self.adapter))
            raise UserError(f"init_from: expected a base model, since the adapter {name!r} saves no complete model")
        self._check_extension()
        check_trackers(self.training.report_to)
        if self.data.corpus.streams:
            check_stream(self.model, self.adapter, self.data, self.training.batch_tokens)
        build_untrusted(SamplingConfig, to_plain(self.sampling), "sampling")  # as the saved model is read

    def _check_extension(self) -> None:
        """Raise UserError where no words can be added to a vocabulary."""
        where = "extend_vocabulary.words"
        if not self.extend_vocabulary.words:
            if self.extend_vocabulary != VocabularyExtension():
                raise UserError(f"extend_vocabulary.min_count: no words are added; give {where}, or leave it out")
            return
        if self.init_from is None:
            raise UserError(f"{where}: a new model has the words of its own corpus; give init_from, or leave it out")
        if not self.adapter.complete:
            name = plain_name(type(self.adapter))
            raise UserError(f"{where}: the adapter {name!r} leaves the words as they are; train all weights, or leave it out")
        if self.objective.trains_joint or getattr(self.objective, "teacher", None):
            raise UserError(f"{where}: a student has the words of its teacher; extend the teacher, or leave it out")
        if not self.model.generates:
            raise UserError(f"{where}: a classifier has the words of its denoiser; leave it out")


def read_config(paths: Sequence[str | Path] = (), assignments: Sequence[tuple[str, str]] = ()) -> RunConfig:
    """Return the defaults, changed by YAML files and then by dotted overrides.

    A run that starts from a model, and gives no settings of one, has that model's.

    Raises UserError for a missing file, an unknown key or component, a wrong type.
    """
    given: dict[str, Any] = {}
    for path in paths:
        given = merge(given, read_plain(Path(path)))
    start = dict(assignments).get("init_from") or given.get("init_from")
    if isinstance(start, str) and not any(name.partition(".")[0] == "model" for name in [*given, *dict(assignments)]):
        given |= settings_of(start)
    # Built once without the overrides, so that one may change a single field of a default component.
    plain = to_plain(build(RunConfig, given))
    return build(RunConfig, override(plain, assignments, RunConfig))


def read_plain(path: Path) -> dict[str, Any]:
    """Read a YAML file; in a run's ``config.yaml`` of format 1, settings are renamed."""
    plain = read_yaml(read_text(path), str(path))
    of_a_run = path.name == "config.yaml" and (path.with_name("data.json").exists() or path.with_name("log.jsonl").exists())
    version = plain.pop("format_version", 1 if of_a_run else FORMAT_VERSION)
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise UserError(f"{path}: format_version: expected a whole number up to {FORMAT_VERSION}, got {version!r}")
    return upgraded(plain) if version == 1 else plain


def train(
    config: RunConfig, folder: str | Path, *, show_texts: bool = False, write_samples: bool = True, quiet: bool = False
) -> bool:
    """Train in ``folder``, or resume the run there; return whether the run is finished.

    ``show_texts`` prints sample texts during training; ``quiet`` hides the progress bar.

    Raises:
        UserError: the folder holds another run or cannot be written, or another process trains in it; the data, the
            vocabulary or a setting are wrong; a checkpoint is damaged; the loss is not finite.
    """
    folder = Path(folder)
    if (folder / "model" / "finished").exists() and _same_config(config, folder):
        print(f"{folder} is already trained; choose another --out to train a new model", file=sys.stderr)
        return True
    config.check()
    refuse_another(config, folder)
    keep_few_shapes()
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    torch.manual_seed(config.training.seed)
    model, tokenizer, rows, validation = prepare(config)
    objective = config.objective.build(model)
    if validation and not (validation := objective.measurable(validation)):
        say("validation: no text has a label that the training texts have, so no loss is measured on it")
    config.training.check(rows, validation, objective.width)
    with unclaimed_if_refused(folder), locked(folder):
        refuse_another(config, folder)  # again: it may have begun meanwhile
        claim(config, folder, rows, of_sources(tokenizer))
        begin_adapter(model, config.init_from, folder, quiet)
        trainer = DiffusionTrainer(
            objective, config.training, folder, rows, validation,
            sample_texts=partial(_sample_texts, config, tokenizer) if write_samples and config.model.generates else None,
            judge=Copies(rows, tokenizer, config.data.tokenizer, _dropout(config)).warning,
            export=partial(_export, config, tokenizer, folder), show_texts=show_texts, quiet=quiet,
            stream=streamed(config.data, tokenizer),
        )  # fmt: skip
        return _train(config, tokenizer, folder, validation, trainer, quiet)


def _train(
    config: RunConfig, tokenizer: PreTrainedTokenizerFast, folder: Path, held_out: Rows, trainer: DiffusionTrainer, quiet: bool
) -> bool:
    """Train, measure and export; return whether the run is finished."""
    if trainer.is_world_process_zero():
        _check_saving(config, tokenizer, folder, trainer.averaged.model)
    finished = trainer.run()
    if finished and trainer.is_world_process_zero():
        if trainer.stream is not None:
            say(trainer.stream.summary())
        with trainer.best.used():
            if (summary := trainer.averaged.report(held_out, folder)) and not quiet:
                print(summary, file=sys.stderr)
            # Again: a run that was interrupted after its last checkpoint has an older model.
            _export(config, tokenizer, folder, trainer.averaged_model())
        write_card(folder / "model")
        write_text(folder / "model" / "finished", f"{trainer.state.global_step} steps\n")
    return finished


def _export(
    config: RunConfig, tokenizer: PreTrainedTokenizerFast, folder: Path, model: PreTrainedModel, trial: bool = False
) -> None:
    sampling = config.sampling if config.model.generates else None
    save_model(model, tokenizer, sampling, folder / "model", config.adapter, config.init_from, trial)


def _check_saving(config: RunConfig, tokenizer: PreTrainedTokenizerFast, folder: Path, model: PreTrainedModel) -> None:
    """Raise UserError where the model cannot be saved: before the first step, not at the first checkpoint."""
    try:
        _export(config, tokenizer, folder, model, trial=True)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:300]
        cure = "; give each of these parameters its own tensor" if "shared tensors" in reason else ""
        raise UserError(f"model: this model cannot be saved: {reason}{cure}") from None


def prepare(config: RunConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, Rows, Rows]:
    """Return the model to train, its tokenizer, and the training and validation rows."""
    splits = config.data.corpus.load()
    spec = config.model.fitted(splits)
    texts = spec.tokenizer_texts(splits["train"])
    tokenizer, model = _start_from(config, texts)
    words = find_new_words(config.extend_vocabulary, tokenizer, texts, config.init_from)
    tokenizer = words.tokenizer
    adapter = config.adapter.fitted(splits)
    spec = adapter.adapted(spec if model is None else config.model.of(model))
    check_rows(spec, config.objective, config.data)
    made = add_source_tokenizer(spec, splits["train"], tokenizer, model)
    used = keep_typical(splits, spec, config.data)
    extensible = model is not None and config.adapter.complete
    rows = spec.rows(encode_splits(used, tokenizer, config.data, extensible), used, tokenizer)
    if made or config.init_from is not None:
        report_unknown_sources(spec, splits["train"], tokenizer, made)
    if model is None:
        model = spec.make(tokenizer, rows["train"], config.data.max_length)
    else:
        model = words.added_to(model, spec, rows["train"])
    if config.model.generates:
        count_lengths(model.config, rows["train"], config.data)
        pipeline_of(model)(model, tokenizer, config.sampling).check(config.sampling)
    model = adapt(model, adapter, config.init_from)
    return model, tokenizer, rows["train"], rows.get("validation", [])


def _dropout(config: RunConfig) -> str:
    """Return the name of the run's setting of dropout, "" if it has none."""
    return next((name for name in flat(to_plain(config)) if name.endswith((".dropout", ".dropped_share"))), "")


def _sample_texts(config: RunConfig, tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> list[str]:
    return pipeline_of(model)(model, tokenizer, config.sampling).preview(10)


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, sampling: SamplingConfig | None, folder: Path,
    adapter: Adapter | None = None, base: str | None = None, trial: bool = False,
) -> None:  # fmt: skip
    """Save a model folder: the model by its adapter, the tokenizer, and the default sampling settings if there are any.

    ``trial`` only tries it, and leaves ``folder`` as it is.

    Raises:
        UserError: it cannot be written; each file is then either the old or the new one. A weight is not finite.
    """
    check_finite(model, folder)

    def save(staged: Path) -> None:
        save_adapted(adapter or Full(), model, staged, base)
        save_tokenizer(tokenizer, staged)
        if sampling is not None:
            save_sampling(sampling, staged)

    write_folder(folder, save, trial)


def save_sampling(sampling: SamplingConfig, folder: Path) -> None:
    """Write the default sampling settings of a model into its ``folder``."""
    plain = {"format_version": FORMAT_VERSION, **to_plain(sampling)}
    write_text(folder / "sampling.json", json.dumps(plain, indent=2) + "\n")


def _start_from(config: RunConfig, texts: Sequence[str]) -> tuple[PreTrainedTokenizerFast, PreTrainedModel | None]:
    """Return the tokenizer, and the model to fine-tune if the run starts from one."""
    if config.init_from is None:
        return config.model.tokenizer(config.data, texts), None
    start = model_folder(config.init_from)
    check_start(start)
    model = config.model.load(start)
    tokenizer = model_tokenizer(model, start)
    if config.data.tokenizer != DataConfig().tokenizer:
        wanted = config.data.tokenizer.make(texts, config.data.max_length)
        if wanted.get_vocab() != tokenizer.get_vocab():
            sizes = f"{len(tokenizer)} words there, {len(wanted)} here"
            raise UserError(f"init_from: {config.init_from} has another vocabulary than data.tokenizer ({sizes})")
    if config.data.max_length > model.config.max_position_embeddings:
        longest = model.config.max_position_embeddings
        raise UserError(f"data.max_length: expected at most {longest}, as in {config.init_from}, got {config.data.max_length}")
    if config.data.context and config.data.max_length < model.config.max_position_embeddings:
        rows = f"{model.config.max_position_embeddings}, the rows of {config.init_from}, in which texts are sampled and scored"
        raise UserError(f"data.max_length: with data.context, expected {rows}, got {config.data.max_length}")
    if not config.model.describes(model):
        raise UserError(f"model: expected the settings of {config.init_from}; pass the config.yaml of its run as --config")
    return tokenizer, model


def refuse_another(config: RunConfig, folder: Path) -> None:
    """Raise UserError unless the folder is new, holds a run of the same config, or only what cannot be a part of a run."""
    path = folder / "config.yaml"
    if path.exists():
        if not _same_config(config, folder):
            raise UserError(f"{folder}: holds another run ({_difference(config, path)}); choose another --out")
    elif folder.is_dir():
        if other := next((file for file in sorted(folder.iterdir()) if not _of_the_shell(file)), None):
            there = f"it holds other files, such as {other.name}"
            raise UserError(f"{folder}: expected a new or empty folder, or a run folder, but {there}")
    elif not (place := next(each for each in (folder, *folder.parents) if each.exists())).is_dir():
        raise UserError(f"{place}: expected a folder, or a place for a new one, got a file")


def _of_the_shell(file: Path) -> bool:
    return file.is_file() and (file.name == LOCK or file.suffix in SHELL)


def claim(config: RunConfig, folder: Path, rows: Rows | None = None, sources: PreTrainedTokenizerFast | None = None) -> None:
    """Write ``config.yaml``, and digests of the training ``rows`` and the tokenizer of their ``sources``, into a run folder.

    What is there stays; earlier versions wrote no digest of what the rows are conditioned on.

    Raises:
        UserError: the run started with other rows, conditions or sources; the folder cannot be written.
    """
    plain = {"format_version": FORMAT_VERSION, **to_plain(config)}
    files = {"config.yaml": yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)}
    if rows is not None:
        digest = digest_of(rows)
        own = {} if sources is None else {"source_tokenizer": tokenizer_digest(sources)}
        earlier = {"training_texts": len(rows), "sha256": digest, **own}
        found = {**earlier, **_condition_digest(rows)}
        files["data.json"] = json.dumps(found) + "\n"
        path = folder / "data.json"
        if path.exists() and (saved := read_json(path)) not in (found, earlier):
            same = isinstance(saved, dict) and saved.items() >= earlier.items()
            what = "the sources or labels of the training texts" if same else "the training texts"
            raise UserError(f"{folder}: {what} differ from those that this run started with; choose another --out")
    for name, text in files.items():
        if not (folder / name).exists():
            write_text(folder / name, text)


def _condition_digest(rows: Rows) -> dict[str, str]:
    """Return a digest of the encoded values that ``rows`` are conditioned on, as far as JSON has them; {} for none."""
    values = [] if isinstance(rows, TokenRows) else [getattr(row, "condition", None) for row in rows]
    if all(value is None for value in values):
        return {}
    plain = json.dumps(values, skipkeys=True, default=lambda value: type(value).__name__)
    return {"conditions": hashlib.sha256(plain.encode()).hexdigest()}


def _same_config(config: RunConfig, folder: Path) -> bool:
    with suppress(UserError):
        return read_config([folder / "config.yaml"]) == config
    return False


def _difference(config: RunConfig, path: Path) -> str:
    """Name the first setting in which a run's config differs."""
    old, new = flat(to_plain(read_config([path]))), flat(to_plain(config))
    changes = (f"its {key} is {old.get(key)}, not {new.get(key)}" for key in [*new, *old] if old.get(key) != new.get(key))
    return next(changes, "its config differs")


def flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in plain.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
