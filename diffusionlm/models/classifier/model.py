"""Classifiers over latents: log p(label | latents, t), differentiable, whose gradients guide a diffusion model.

    latents -> network -> features (B, L, W) -> head -> log-probabilities

The latents are named by ``reads``: the frozen diffusion model's prediction x0_hat at (x_t, t), the noisy vectors x_t
(noise-aware: Li et al. 2022, section 5.1; Dhariwal and Nichol 2021), or the clean word vectors. The log-probabilities are
calibrated to the label frequencies of the training texts. ``heads`` has the heads. Shape letters: B batch, L positions, D
latent dimension, W features, V words, F fields.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import datasets  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.config import FORMAT_VERSION, UserError, build_untrusted, to_plain, upgraded
from diffusionlm.core.model import MAX_GAMMA
from diffusionlm.core.schedule import NoiseSchedule
from diffusionlm.data.annotators import Annotator, annotated
from diffusionlm.data.batches import DataConfig, Encoded
from diffusionlm.data.folders import is_folder
from diffusionlm.data.labels import NONE, OTHER, Labelled, Labels, check_vocabulary, fields_of
from diffusionlm.data.tokenizers import load_tokenizer
from diffusionlm.files import write_folder
from diffusionlm.models.adapters import saved_adapter
from diffusionlm.models.backbones import Backbone, Transformer
from diffusionlm.models.classifier.accuracy import value_measures
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.io import SavedConfig, Text, Whole, check_tokenizer, load_pretrained, model_folder
from diffusionlm.models.named import bundled_models
from diffusionlm.models.spec import ModelSpec, Rows, Splits

IGNORED = -100  # the target of what is not counted in the loss


@dataclass(frozen=True)
class ClassifierConfig(ModelSpec, name="classifier"):
    """Hyperparameters of a classifier.

    Args:
        denoiser: folder of the diffusion model or of its run; its tokenizer, word vectors and predictions are used.
        labels: columns of the corpus; ``attributes.food`` is a key of a column of mappings, and ``attributes`` alone stands
            for all keys that have several values. The heads ``token`` and ``span`` take one column.
        head: ``sequence`` classifies a text, ``token`` each word (a column of lists), ``span`` each run of words (trees).
        reads: the latents that it is trained on.
        pointer: whether the head ``sequence`` also points at positions and averages what the words there indicate, weighted
            by their probabilities (after See et al. 2017, section 2.2). Guidance often starts from words of probability
            .001, whose effect on a mean vector is too small to see. Not with ``noisy`` latents: there is no prediction.
        min_count: values with fewer labels than this in the training texts count as one value, "other".
        features: W, the coordinates of the features of a position.
        backbone: the network that makes the features.
        annotator: labels the texts of a corpus without such columns.
        templates: whether the head ``span`` finds part-of-speech templates in trees with tags, see ``templates``.
    """

    denoiser: str
    labels: tuple[str, ...]
    head: Literal["sequence", "token", "span"] = "sequence"
    reads: Literal["prediction", "noisy", "clean"] = "prediction"
    pointer: bool = True
    min_count: int = 20
    features: int = 96
    backbone: Backbone = field(default_factory=lambda: Transformer(layers=2, width=96, heads=4))
    annotator: Annotator | None = None
    templates: bool = True

    generates: ClassVar[bool] = False

    @property
    def points(self) -> bool:
        """Whether there is a pointer."""
        return self.pointer and self.reads != "noisy" and self.kind.can_point

    @property
    def kind(self) -> type[LatentClassifier]:
        """The class of the head's models."""
        return LatentClassifier.of_head(self.head)

    def __post_init__(self) -> None:
        if not self.labels:
            raise UserError("labels: expected a column of the corpus, such as [attributes.food]")
        if len(self.labels) > 1 and not self.kind.many_fields:
            raise UserError(f"labels: head {self.head!r} takes one column, got {', '.join(self.labels)}")
        self.expect("at least 1", "min_count", "features")

    def tokenizer(self, data: DataConfig, texts: Sequence[str]) -> PreTrainedTokenizerFast:
        """Load the denoiser's tokenizer. Raises UserError where ``data`` names another, or longer texts."""
        folder = model_folder(self.denoiser)
        denoiser, tokenizer = DiffusionLM.load(folder), load_tokenizer(folder)
        check_tokenizer(tokenizer, denoiser, folder)
        longest = denoiser.config.max_tokens
        if data.max_length > longest:
            raise UserError(f"data.max_length: {self.denoiser} reads up to {longest} tokens, got {data.max_length}")
        if data.tokenizer != DataConfig().tokenizer and data.tokenizer.make(texts).get_vocab() != tokenizer.get_vocab():
            raise UserError(f"data.tokenizer: a classifier has the vocabulary of {self.denoiser}; leave the tokenizer out")
        return tokenizer

    def fitted(self, splits: Splits) -> Self:
        rows = splits["train"] if self.annotator is None else splits["train"].select(range(1))
        fields_of(self._annotated(rows), self.labels, self.kind.reads_labels)
        return self

    def _annotated(self, rows: datasets.Dataset) -> datasets.Dataset:
        return rows if self.annotator is None else annotated(rows, self.annotator, self.labels)

    def rows(self, encoded: Mapping[str, Encoded], splits: Splits, tokenizer: PreTrainedTokenizerFast) -> Mapping[str, Rows]:
        """Return the texts as ``Labelled``."""
        check_vocabulary(encoded["train"].ids, tokenizer, self.denoiser)
        splits = {split: self._annotated(rows) for split, rows in splits.items() if split in encoded}
        labels = self.kind.reads_labels
        fields = fields_of(splits["train"], self.labels, labels)
        return {split: labels.read(splits[split], texts, tokenizer, fields) for split, texts in encoded.items()}

    def make(self, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[int]], max_length: int) -> LatentClassifier:
        """Return a new model; the values of its fields, and its head's statistics, are counted in the ``Labelled`` rows."""
        denoiser = DiffusionLM.load(model_folder(self.denoiser))
        labelled = [row for row in rows if isinstance(row, Labelled)]
        values = {name: self.kind.reads_labels.values(labelled, name, self.min_count) for name in sorted(labelled[0].labels)}
        varied = {name: known for name, known in values.items() if len(known) > 1}
        if constant := [name for name in values if name not in varied and (name in self.labels or not varied)]:
            raise UserError(self.kind.reads_labels.too_few(labelled, constant[0], self.min_count))
        config = ClassifierModelConfig(
            settings=to_plain(self),
            schedule=to_plain(denoiser.settings.schedule),
            dimension=denoiser.settings.dimension,
            vocabulary=denoiser.config.vocabulary,
            max_tokens=denoiser.config.max_tokens,
            labels=varied,
            words=words_digest(denoiser),
        )
        model = LatentClassifier(config)
        model.count(labelled)
        return model

    def load(self, folder: str | Path) -> LatentClassifier:
        return LatentClassifier.load(folder)

    def describes(self, model: PreTrainedModel) -> bool:
        """Compare all settings but the folder of the denoiser."""
        return isinstance(model, LatentClassifier) and replace(model.settings, denoiser=self.denoiser) == self


@dataclass(frozen=True, kw_only=True)
class SavedClassifier(SavedConfig):
    """What ``config.json`` of a classifier has to hold and may hold."""

    schedule: dict[str, Any]
    dimension: Whole
    labels: dict[Text, list[Text]]
    words: Text
    templates: dict[Text, list[Text]]
    span_places: Whole

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect("at least 1", "dimension")
        if not self.schedule:
            raise UserError("schedule: expected the noise schedule that the classifier was trained with, got none")
        for name, values in self.labels.items():
            if len({*values}) != len(values) or len(values) < 2:
                raise UserError(f"labels: expected several values of {name!r}, each once, got {values}")
        if not self.labels or (len(self.labels) > 1 and self.settings.get("head", "sequence") != "sequence"):
            raise UserError(f"labels: expected fields of labels, one for a head of tokens or spans, got {[*self.labels]}")


class ClassifierModelConfig(PreTrainedConfig):
    """The saved form of a classifier's config: plain numbers and strings, enough to use it without its denoiser.

    Args:
        settings: a ``ClassifierConfig`` in plain form.
        schedule: the denoiser's noise schedule in plain form.
        dimension: D, the coordinates of a latent.
        vocabulary: V, the number of words.
        max_tokens: the most tokens of a text, BOS and EOS included.
        labels: the values of each field in index order.
        words: the digest of the denoiser's word vectors.
        templates: part-of-speech templates by constituent label (head ``span``).
        span_places: rows of the table of the constituents' positions (head ``span``).
    """

    model_type = "diffusionlm-classifier"
    saved: ClassVar[type[SavedConfig]] = SavedClassifier
    place: ClassVar[str] = "classifier"
    attribute_map: ClassVar[dict[str, str]] = {"vocab_size": "vocabulary", "max_position_embeddings": "max_tokens"}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        if config_dict.get("format_version") == 1:
            config_dict = {**upgraded(config_dict, cls.place), "format_version": FORMAT_VERSION}
        return super().from_dict(config_dict, **kwargs)

    def __init__(
        self, settings: dict[str, Any] | None = None, schedule: dict[str, Any] | None = None,
        dimension: int = 64, vocabulary: int = 4, max_tokens: int = 64,
        labels: dict[str, list[str]] | None = None, words: str = "",
        templates: dict[str, list[str]] | None = None, span_places: int = 0,
        format_version: int = FORMAT_VERSION, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.settings = settings or to_plain(ClassifierConfig("", ("label",)))
        self.schedule = schedule or {"name": "gumbel"}
        self.dimension, self.vocabulary, self.max_tokens = dimension, vocabulary, max_tokens
        self.labels = labels or {"label": ["no", "yes"]}
        self.templates = templates or {}
        self.words, self.span_places, self.format_version = words, span_places, format_version


class LatentClassifier(PreTrainedModel):
    """Base of the classifiers: ``classifier(latents, t, mask, words)[field]`` are log-probabilities.

    Constructing or loading a ``LatentClassifier`` gives the subclass of the config's head. ``labels`` has the values of each
    field in index order; "" stands for a text or a word without a label, and for a span that is no constituent.
    """

    config_class = ClassifierModelConfig
    base_model_prefix = "classifier"
    main_input_name = "latents"

    reads_labels: ClassVar[Labels]  # what its labels are
    many_fields: ClassVar[bool] = False  # whether it classifies several fields at once
    can_point: ClassVar[bool] = False  # whether it can have a pointer

    @staticmethod
    def of_head(name: str) -> type[LatentClassifier]:
        """Return the class of the head ``name``, the base class where there is none."""
        from diffusionlm.models.classifier.heads import HEADS  # which build on this module

        return HEADS.get(name, LatentClassifier)

    def __new__(cls, config: ClassifierModelConfig | None = None, *args: Any, **kwargs: Any) -> Self:
        """Return a classifier with the head that ``config`` names."""
        kind = cls.of_head("" if config is None else config.settings.get("head", "sequence"))
        return super().__new__(kind if issubclass(kind, cls) else cls)

    def __init__(self, config: ClassifierModelConfig) -> None:
        """Make a model with random weights; see ``DiffusionLM``."""
        super().__init__(config)
        self.settings = build_untrusted(ClassifierConfig, config.settings, "settings")
        self.schedule = build_untrusted(NoiseSchedule, config.schedule, "schedule")
        self.labels: dict[str, list[str]] = {name: config.labels[name] for name in sorted(config.labels)}
        self.indices = {name: {value: i for i, value in enumerate(values)} for name, values in self.labels.items()}
        W, self.sizes = self.settings.features, [len(values) for values in self.labels.values()]
        self.network = self.settings.backbone.build(config.dimension, W, config.max_tokens)
        self.values = nn.Linear(W, sum(self.sizes))
        self.make_head()
        self.post_init()  # type: ignore[no-untyped-call]

    def make_head(self) -> None:
        """Make the modules and tables of the head."""
        raise NotImplementedError

    def count(self, rows: Sequence[Labelled]) -> None:
        """Fill the head's tables from the training texts."""

    def forward(self, latents: Tensor, t: Tensor, mask: Tensor | None = None, words: Tensor | None = None) -> dict[str, Tensor]:
        """Return the log-probabilities of each field: the product of the ``experts``.

        Head ``sequence``: (B, values); ``token``: (B, L, values); ``span``: (B, L, L, values), valid for words i <= j.

        Args:
            latents: (B, L, D).
            t: the denoiser's times, (B,) or (B, L); a classifier of clean words ignores them.
            mask: (B, L), True at non-padding tokens.
            words: (B, L, V), the token posteriors, for a classifier with a pointer.
        """
        # A mixture of words can mislead the network but not the pointer, which in turn sees one word at a time: no "not".
        first, *others = self.experts(latents, t, mask, words)
        for other in others:
            first = {name: ((log_p + other[name]) / 2).log_softmax(-1) for name, log_p in first.items()}
        return first

    def experts(self, latents: Tensor, t: Tensor, mask: Tensor | None, words: Tensor | None) -> list[dict[str, Tensor]]:
        """Return the log-probabilities of the network and, if there is one, of the pointer."""
        gamma = self.schedule.gamma(torch.zeros_like(t) if self.settings.reads == "clean" else t)
        features = self.network(latents, t.float(), gamma.clamp(-MAX_GAMMA, MAX_GAMMA).float(), mask)
        network = {name: logits.float().log_softmax(-1) for name, logits in self.logits(features, mask).items()}
        return [network, self.pointed(features, mask, words)] if self.settings.points else [network]

    def logits(self, features: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Return the logits of each field from features (B, L, W)."""
        raise NotImplementedError

    def pointed(self, features: Tensor, mask: Tensor | None, words: Tensor | None) -> dict[str, Tensor]:
        """Return the log-probabilities of the pointer. Raises UserError without ``words``."""
        raise NotImplementedError

    def word_probabilities(self, ids: Tensor) -> Tensor | None:
        """Return the one-hot token posteriors (B, L, V) of ``ids`` (B, L); None where there is no pointer to use them."""
        return F.one_hot(ids, self.config.vocabulary).float() if self.settings.points else None

    def index(self, name: str, value: str) -> int:
        """Return the index of a field's ``value``, or that of "other"; ``IGNORED`` where there is neither, or no label."""
        known = self.indices[name]
        return known.get(value, IGNORED if value == NONE else known.get(OTHER, IGNORED))

    def targets(self, rows: Sequence[Labelled], length: int) -> Tensor:
        """Return the indices of the labels of ``rows`` padded to ``length``, ``IGNORED`` where there is none."""
        raise NotImplementedError

    def by_field(self, targets: Tensor) -> Sequence[Tensor]:
        """Split ``targets`` by field."""
        return [targets]

    def class_weights(self, size: int, none_weight: float) -> Tensor:
        """Return the weights in the loss of a field's ``size`` values; ``none_weight`` is that of a span that is none."""
        return torch.ones(size)

    def measures(self, confusion: Tensor) -> dict[str, float]:
        """Return accuracy measures of a field, the main one first, from its confusion matrix (true, predicted)."""
        return value_measures(confusion)

    def check_fits(self, model: DiffusionLM) -> None:
        """Check that the classifier was trained on the word vectors of ``model``. Raises UserError."""
        if self.config.words != words_digest(model):
            made = self.settings.denoiser
            raise UserError(f"classifier: it was trained on other word vectors (those of {made} then); train it for this model")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Load a classifier's model folder, or its run's; see ``load_pretrained``."""
        return load_pretrained(cls, model_folder(folder)).train(False)


AutoConfig.register(ClassifierModelConfig.model_type, ClassifierModelConfig)
AutoModel.register(ClassifierModelConfig, LatentClassifier)


def words_digest(model: DiffusionLM) -> str:
    """Return a digest of a model's word vectors that is the same for weights loaded in fp32 and in bf16."""
    words = model.embedding.weight.detach().cpu().bfloat16().contiguous().view(torch.int16)
    return hashlib.sha256(words.numpy().tobytes()).hexdigest()[:16]


def copy_classifiers(model: str | Path, other: str | Path) -> None:
    """Copy the classifiers in the folder of ``model``, or of its run, to that of a model with the same word vectors."""
    home, new = (model_folder(folder) / "classifiers" for folder in (model, other))
    for config in sorted([*home.glob("*/config.json"), *home.glob("*/model/config.json")]):
        folder, name = config.parent, config.relative_to(home).parts[0]
        if any(path.is_file() and not (new / name / path.name).exists() for path in folder.iterdir()):
            write_folder(new / name, partial(_copy_files, folder))


def _copy_files(folder: Path, staged: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            shutil.copy(path, staged / path.name)


def classifier_homes(model: str | Path) -> list[Path]:
    """Return the folders with a model's classifiers: its own, and for an adapter that of its base."""
    folder = model_folder(model)
    saved = saved_adapter(folder)
    return [each / "classifiers" for each in ([folder] if saved is None else [folder, model_folder(saved.base)])]


def find_classifier(model: str | Path, name: str) -> Path:
    """Return the folder ``classifiers/NAME`` of a diffusion model's folder, or its run's. Raises UserError without one."""
    homes = classifier_homes(model)
    home = homes[0]
    there = sorted(path.parent.name for each in homes if each.is_dir() for path in each.glob("*/config.*"))
    if name in there:
        if found := next((each / name for each in homes if is_folder(each / name)), None):
            return found
    known = f"there are {', '.join(dict.fromkeys(there))}" if there else "there is none yet"
    if Path(name).name != name:
        raise UserError(f"classifier: there is no folder {name!r}, and {home} holds none of this name ({known})")
    config = f"configs/classifiers/{name}.yaml"
    config, where = (config, "") if os.path.isfile(config) else ("CONFIG.yaml", ", CONFIG.yaml being a classifier's settings")
    command = f"diffusionlm train --config {config} --model.denoiser {model} --out {home / name}{where}"
    own = home.parent not in bundled_models().values()
    advice = f"; train it, on texts with its labels (data.corpus): {command}" if own else ""
    raise UserError(f"{home}: no classifier is called {name!r} ({known}), and there is no folder of this name{advice}")
