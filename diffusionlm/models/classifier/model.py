"""Classifiers over latents: log p(label | latents, t), differentiable, to steer a diffusion model by its gradient.

    sequence: log p(value of a field | text)      (B, values)         attention and maximum over positions; a pointer
    token:    log p(tag of position i)            (B, L, tags)        linear
    span:     log p(label of positions i ... j)   (B, L, L, labels)   a perceptron on the features of both ends

on the features of a small network over the latents. The latents are what ``reads`` says: the frozen diffusion model's
belief x0-hat at (x_t, t), the noisy vectors x_t themselves (noise-aware: Li et al. 2022, section 5.1; Dhariwal and Nichol
2021), or words' clean vectors. The log-probabilities are calibrated to how often labels occur in the training texts.
Shape letters: B batch, L positions, D latent dimension, W features, V words, F fields.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import datasets  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.config import FORMAT_VERSION, UserError, build_untrusted, to_plain, upgraded
from diffusionlm.core.model import MAX_GAMMA
from diffusionlm.core.sampler import SMALLEST
from diffusionlm.core.schedule import NoiseSchedule
from diffusionlm.data.annotators import Annotator, annotated
from diffusionlm.data.batches import DataConfig, Encoded
from diffusionlm.data.labels import OTHER, Head, Labelled, check_vocabulary, fields_of, label_rows, values_of
from diffusionlm.data.tokenizers import load_tokenizer
from diffusionlm.models.backbones import Backbone, Transformer
from diffusionlm.models.classifier.templates import find_templates, list_templates, span_places
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.io import load_pretrained, model_folder
from diffusionlm.models.spec import ModelSpec

SENSES = 2  # of a word that is pointed at: "not expensive" states another price than "expensive"


@dataclass(frozen=True)
class ClassifierConfig(ModelSpec, name="classifier"):
    """What a classifier is made of, apart from its labels' values.

    Args:
        denoiser: folder of the diffusion model, or of its run, whose tokenizer, word vectors and beliefs it reads.
        labels: columns of the corpus, dotted where one holds mappings (``attributes.food``); such a column alone
            (``attributes``) stands for all of its keys that have several values. Heads ``token`` and ``span`` take one column.
        head: of a text's values, of a tag for each word (a column of lists), or of constituents (a column of trees).
        reads: the latents it is trained on.
        pointer: whether head ``sequence`` also points at positions and takes the values that the words believed there state,
            each by its chance (after See et al. 2017, section 2.2, who copy words so). A mean vector does not show a chance
            of a thousandth, and from there a gradient has to start. Not where ``noisy`` vectors are read, for want of beliefs.
        min_count: values that fewer training texts (words, constituents) have count as one value, "other".
        features: W, coordinates that the network gives each position.
        backbone: the network.
        annotator: of the texts of a corpus that has no such columns.
    """

    denoiser: str
    labels: tuple[str, ...]
    head: Head = "sequence"
    reads: Literal["prediction", "noisy", "clean"] = "prediction"
    pointer: bool = True
    min_count: int = 20
    features: int = 96
    backbone: Backbone = field(default_factory=lambda: Transformer(layers=2, width=96, heads=4))
    annotator: Annotator | None = None

    writes: ClassVar[bool] = False

    @property
    def points(self) -> bool:
        """Whether there is a pointer."""
        return self.pointer and self.head == "sequence" and self.reads != "noisy"

    def __post_init__(self) -> None:
        """Check what can be checked without the corpus."""
        if not self.labels:
            raise UserError("labels: expected a column of the corpus, such as [attributes.food]")
        if self.head != "sequence" and len(self.labels) > 1:
            raise UserError(f"labels: head {self.head!r} takes one column, got {', '.join(self.labels)}")
        for name in ("min_count", "features"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def tokenizer(self, data: DataConfig, texts: Sequence[str]) -> PreTrainedTokenizerFast:
        """Read the denoiser's. Raises UserError where ``data.tokenizer`` asks for another, or the denoiser reads less."""
        folder = model_folder(self.denoiser)
        longest = DiffusionLM.load(folder).config.max_tokens
        tokenizer = load_tokenizer(folder)
        if data.max_length > longest:
            raise UserError(f"data.max_length: {self.denoiser} reads up to {longest} tokens, got {data.max_length}")
        if data.tokenizer != DataConfig().tokenizer and data.tokenizer.make(texts).get_vocab() != tokenizer.get_vocab():
            raise UserError(f"data.tokenizer: a classifier has the vocabulary of {self.denoiser}; leave the tokenizer out")
        return tokenizer

    def check_data(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """Check that the corpus has the columns, or that the annotator tells them of its first text."""
        rows = splits["train"] if self.annotator is None else splits["train"].select(range(1))
        fields_of(self._labelled(rows), self.labels, self.head)

    def _labelled(self, rows: datasets.Dataset) -> datasets.Dataset:
        return rows if self.annotator is None else annotated(rows, self.annotator, self.labels)

    def rows(
        self, encoded: Mapping[str, Encoded], splits: Mapping[str, datasets.Dataset], tokenizer: PreTrainedTokenizerFast
    ) -> Mapping[str, Sequence[list[int]]]:
        """Return the texts with their labels."""
        check_vocabulary(encoded["train"].ids, tokenizer, self.denoiser)
        splits = {split: self._labelled(rows) for split, rows in splits.items() if split in encoded}
        fields = fields_of(splits["train"], self.labels, self.head)
        return {split: label_rows(splits[split], texts, tokenizer, fields, self.head) for split, texts in encoded.items()}

    def make(self, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[int]], max_length: int) -> LatentClassifier:
        """Make the model; values, and the tags of each word, are counted in ``rows``, which are ``Labelled``."""
        denoiser = DiffusionLM.load(model_folder(self.denoiser))
        labelled = [row for row in rows if isinstance(row, Labelled)]
        names = sorted(labelled[0].labels)
        values = {name: values_of(labelled, name, self.head, self.min_count) for name in names}
        varied = {name: known for name, known in values.items() if len(known) > 1}
        if constant := [name for name in names if name not in varied and (name in self.labels or not varied)]:
            raise UserError(f"labels: {constant[0]!r} has one value only in the training texts: {values[constant[0]]}")
        frames, places = {}, torch.zeros(0, 6)
        if self.head == "span":
            frames = find_templates(labelled, names[0])
            places = span_places(labelled, names[0], varied[names[0]], frames)
        model = LatentClassifier(
            ClassifierModelConfig(
                settings=to_plain(self),
                schedule=to_plain(denoiser.settings.schedule),
                dimension=denoiser.settings.dimension,
                vocabulary=denoiser.config.vocabulary,
                max_tokens=denoiser.config.max_tokens,
                labels=varied,
                words=words_digest(denoiser),
                templates=frames,
                span_places=len(places),
            )
        )
        if self.head == "span":
            model.span_places.copy_(places)
        if self.head == "token":
            model.count_lexicon(labelled)
        return model

    def load(self, folder: str | Path) -> LatentClassifier:
        """Read a classifier."""
        return LatentClassifier.load(folder)

    def describes(self, model: PreTrainedModel) -> bool:
        """Compare all but where the denoiser lies."""
        return isinstance(model, LatentClassifier) and replace(model.settings, denoiser=self.denoiser) == self


class ClassifierModelConfig(PreTrainedConfig):
    """The saved form of a classifier's config: plain numbers and strings, enough to use it without its denoiser."""

    model_type = "diffusionlm-classifier"
    attribute_map: ClassVar[dict[str, str]] = {"vocab_size": "vocabulary", "max_position_embeddings": "max_tokens"}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a saved config, of format 1 too."""
        if config_dict.get("format_version") == 1:
            config_dict = {**upgraded(config_dict, "classifier"), "format_version": FORMAT_VERSION}
        return super().from_dict(config_dict, **kwargs)

    def __init__(
        self,
        settings: dict[str, Any] | None = None,
        schedule: dict[str, Any] | None = None,
        dimension: int = 64,
        vocabulary: int = 4,
        max_tokens: int = 64,
        labels: dict[str, list[str]] | None = None,
        words: str = "",
        templates: dict[str, list[str]] | None = None,
        span_places: int = 0,
        format_version: int = FORMAT_VERSION,
        **kwargs: Any,
    ) -> None:
        """Keep plain numbers and strings only.

        Args:
            settings: a ``ClassifierConfig`` in plain form.
            schedule: the denoiser's, in plain form.
            dimension: D, coordinates of a latent.
            vocabulary: V, words.
            max_tokens: of a text, START and END included.
            labels: the values of each field in index order.
            words: the digest of the denoiser's word vectors.
            templates: of each kind of constituent, where the head is of spans.
            span_places: rows of the table of where constituents stood, there too.
            format_version: of the folder; a newer one is refused.
            **kwargs: transformers' own.
        """
        super().__init__(**kwargs)
        self.settings = settings or to_plain(ClassifierConfig("", ("label",)))
        self.schedule = schedule or {"name": "gumbel"}
        self.dimension, self.vocabulary, self.max_tokens = dimension, vocabulary, max_tokens
        self.labels = labels or {"label": ["no", "yes"]}
        self.words = words
        self.templates = templates or {}
        self.span_places = span_places
        self.format_version = format_version


class LatentClassifier(PreTrainedModel):
    """A classifier over latents: ``classifier(latents, t, mask, words)[field]`` are log-probabilities.

    ``labels`` says what they are of: for each field its values in index order. A text, or a word, that has none has the
    value ""; a span that is no constituent as well. ``lexicon_counts`` (V, tags) is how often words had tags in training,
    ``span_places`` (N, 6) where constituents stood, as ``frames.span_places`` counts.
    """

    config_class = ClassifierModelConfig
    base_model_prefix = "classifier"
    main_input_name = "latents"
    lexicon_counts: Tensor
    span_places: Tensor

    def __init__(self, config: ClassifierModelConfig) -> None:
        """Make a model with random weights.

        Raises:
            UserError: settings that are not this library's, or need code that is not imported.
        """
        super().__init__(config)
        self.settings = build_untrusted(ClassifierConfig, config.settings, "settings")
        self.schedule = build_untrusted(NoiseSchedule, config.schedule, "schedule")
        self.labels: dict[str, list[str]] = {name: config.labels[name] for name in sorted(config.labels)}
        self.indices = {name: {value: i for i, value in enumerate(values)} for name, values in self.labels.items()}
        W, self.sizes = self.settings.features, [len(values) for values in self.labels.values()]
        self.network = self.settings.backbone.build(config.dimension, W, config.max_tokens)
        self.values = nn.Linear(W, sum(self.sizes))
        if self.settings.head == "sequence":
            self.attend = nn.Linear(W, len(self.labels), bias=False)
            if self.settings.points:
                self._widths = [SENSES * size for size in self.sizes]
                self.point = nn.Linear(W, SENSES * len(self.labels), bias=False)
                self.stated = nn.Embedding(config.vocabulary, sum(self._widths))
        elif self.settings.head == "token":
            counts = torch.zeros(config.vocabulary, self.sizes[0], dtype=torch.int32)
            self.register_buffer("lexicon_counts", counts)
        else:
            self.first, self.last = nn.Linear(W, W), nn.Linear(W, W, bias=False)
            places = torch.zeros(config.span_places, 6, dtype=torch.int32)
            self.register_buffer("span_places", places, persistent=bool(config.span_places))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, latents: Tensor, t: Tensor, mask: Tensor | None = None, words: Tensor | None = None) -> dict[str, Tensor]:
        """Return log-probabilities for each field, of ``latents`` (B, L, D) at times ``t`` (B,) or (B, L) of the model.

        ``mask`` (B, L) is True at real tokens; ``words`` (B, L, V) are the chances of the words believed, which a
        classifier with a pointer needs. Sequence: (B, values). Token: (B, L, values). Span: (B, L, L, values), of
        the positions i ... j, both included and START being 0, where i <= j are words; elsewhere they mean nothing. A
        classifier of clean words is told no time.
        """
        read, *pointed = self.readings(latents, t, mask, words)
        # The mean of both: what the network would see in a mixture of words by mistake, the pointer does not, nor the
        # pointer what only the network can tell, such as a "not" far off.
        for other in pointed:
            read = {name: ((log_p + other[name]) / 2).log_softmax(-1) for name, log_p in read.items()}
        return read

    def readings(self, latents: Tensor, t: Tensor, mask: Tensor | None, words: Tensor | None) -> list[dict[str, Tensor]]:
        """Return the log-probabilities of the network and, where there is one, of the pointer, each by itself.

        Raises:
            UserError: there is a pointer, and no ``words``.
        """
        gamma = self.schedule.gamma(torch.zeros_like(t) if self.settings.reads == "clean" else t)
        told = gamma.clamp(-MAX_GAMMA, MAX_GAMMA).float()
        features = self.network(latents, t.float(), told, mask)
        read = {name: logits.float().log_softmax(-1) for name, logits in self._logits(features, mask).items()}
        return [read, self._pointed(features, mask, words)] if self.settings.points else [read]

    def _logits(self, features: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        names = list(self.labels)
        if self.settings.head == "token":
            return {names[0]: self.values(features)}
        if self.settings.head == "span":
            pairs = self.first(features)[:, :, None] + self.last(features)[:, None]
            return {names[0]: self.values(F.gelu(pairs))}
        scores, largest = self.attend(features).float(), features
        if mask is not None:
            scores, largest = _barred(scores, mask), _barred(features, mask)
        attended = scores.softmax(1).transpose(1, 2).to(features) @ features
        # One word often settles a value: attention takes long to find it, the largest of each feature does not.
        pooled = attended + largest.amax(1, keepdim=True)
        parts = zip(pooled.unbind(1), self.values.weight.split(self.sizes), self.values.bias.split(self.sizes), strict=True)
        return {name: F.linear(*part) for name, part in zip(names, parts, strict=True)}

    def _pointed(self, features: Tensor, mask: Tensor | None, words: Tensor | None) -> dict[str, Tensor]:
        """Return what the words that are pointed at state, weighted by their chances, of which its chance is a mean."""
        if words is None:
            raise UserError("classifier: this one has a pointer, and needs the chances of the words")
        scores = self.point(features).float() if mask is None else _barred(self.point(features).float(), mask)
        where = scores.unflatten(-1, (-1, SENSES)).transpose(1, 2).flatten(2).softmax(-1).unflatten(-1, (-1, SENSES))
        pointed_at = torch.einsum("bfls,blv->bfsv", where, words.float())
        found = {}
        for f, (name, table) in enumerate(zip(self.labels, self.stated.weight.float().split(self._widths, -1), strict=True)):
            stated = table.unflatten(-1, (SENSES, -1)).softmax(-1)
            found[name] = (torch.einsum("bsv,vsc->bc", pointed_at[:, f], stated) + SMALLEST).log()
        return found

    def chances(self, ids: Tensor) -> Tensor | None:
        """Return the chances (B, L, V) of words that are certain, ids (B, L); None where no pointer asks for them."""
        return F.one_hot(ids, self.config.vocabulary).float() if self.settings.points else None

    def index(self, name: str, value: str) -> int:
        """Return the index of ``value`` in a field, or of "other" where there is one; -100 where it was never seen."""
        known = self.indices[name]
        return known.get(value, known.get(OTHER, -100))

    def count_lexicon(self, rows: Iterable[Labelled]) -> None:
        """Count each token's tags in ``rows``."""
        (name,) = self.labels
        counts: Counter[tuple[int, int]] = Counter()
        for row in rows:
            counts.update((i, self.index(name, tag)) for i, tag in zip(row, row.labels[name], strict=True) if tag is not None)
        for (token, tag), count in counts.items():
            self.lexicon_counts[token, tag] = count

    def lexicon(self) -> Tensor:
        """Return p(tag | token) (V, tags) as counted in the training texts; zeros for a token that was not seen there.

        Raises:
            UserError: the head is not of tokens.
        """
        if self.settings.head != "token":
            raise UserError(f"lexicon: head {self.settings.head!r} classifies no tokens")
        return self.lexicon_counts / self.lexicon_counts.sum(1, keepdim=True).clamp(min=1)

    def length_chances(self, first: int, last: int, chains: Tensor) -> list[float]:
        """Return the chance of a span of positions ``first`` to ``last``, labelled one of ``chains``, by the text's length.

        Lengths are in tokens, START and END counted. As counted in training, each length with one text more that has as
        much of a chance as any; empty where no training text has such a span.
        """
        there = self._standing(first, last, chains)

        def of_length(rows: Tensor) -> Tensor:
            length, texts = rows[:, 4:].unbind(1)
            return torch.zeros(self.config.max_tokens + 1).index_add_(0, length, texts.float())

        having, all_texts = of_length(there), of_length(self._standing(0, 0, torch.tensor([0])))
        return ((having + having.sum() / all_texts.sum()) / (all_texts + 1)).tolist() if having.any() else []

    def template_lengths(self, first: int, last: int, chains: Tensor) -> dict[str, set[int]]:
        """Return in which frames such a span stood in training, as ``length_chances`` has it, and in texts of which lengths."""
        frames, found = list_templates(self.config.templates), defaultdict(set)
        for _, _, _, number, length, _ in self._standing(first, last, chains).tolist():
            if number:
                found[frames[number - 1]].add(length)
        return dict(found)

    def _standing(self, first: int, last: int, chains: Tensor) -> Tensor:
        """Return the rows of ``span_places`` that are of these."""
        places = self.span_places.cpu()
        return places[(places[:, 0] == first) & (places[:, 1] == last) & torch.isin(places[:, 2], chains.int())]

    def check_fits(self, model: DiffusionLM) -> None:
        """Check that the classifier was trained on the word vectors of ``model``. Raises UserError."""
        if self.config.words != words_digest(model):
            made = self.settings.denoiser
            raise UserError(f"classifier: it was trained on other word vectors (those of {made} then); train it for this model")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a classifier's model folder, or its run's; safetensors and JSON only.

        Raises:
            UserError: no such folder, another kind of model, of a newer format, or damaged.
        """
        return load_pretrained(cls, model_folder(folder)).train(False)


def _barred(x: Tensor, mask: Tensor) -> Tensor:
    """Return ``x`` (B, L, ...) with no chance where the text is over."""
    return x.masked_fill(~mask[..., None], -torch.inf)


AutoConfig.register(ClassifierModelConfig.model_type, ClassifierModelConfig)
AutoModel.register(ClassifierModelConfig, LatentClassifier)


def words_digest(model: DiffusionLM) -> str:
    """Return a digest of a model's word vectors that is the same whether it was loaded in fp32 or bf16."""
    words = model.embedding.weight.detach().cpu().bfloat16().contiguous().view(torch.int16)
    return hashlib.sha256(words.numpy().tobytes()).hexdigest()[:16]


def find_classifier(model: str | Path, name: str) -> Path:
    """Return the folder of the classifier ``name`` of a diffusion model (its folder, or its run's): classifiers/NAME.

    Raises:
        UserError: there is none of that name; the sentence says which there are, and how to train it.
    """
    home = model_folder(model) / "classifiers"
    there = sorted(path.parent.name for path in home.glob("*/config.*")) if home.is_dir() else []
    if (home / name).is_dir() and name in there:
        return home / name
    known = f"there are {', '.join(dict.fromkeys(there))}" if there else "there is none yet"
    command = f"diffusionlm train --config configs/classifiers/{name}.yaml --model.denoiser {model} --out {home / name}"
    raise UserError(f"{home}: no classifier is called {name!r} ({known}); train it: {command}")
