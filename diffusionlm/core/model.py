"""DiffusionLM: words to vectors, noisy vectors to beliefs about words.

    x_0 = E_w            denoise(x_t, t) -> token logits and x_0            words = argmax of the logits

``prediction`` says what the network puts out. ``logits``: x_0 is softmax(logits) E, the exact posterior mean for those
logits, and with ``evidence`` the noisy vector's own say is added, (alpha / sigma^2) x_t E^T: Bayes' rule with the
network as the prior from context (Plaid, Gulrajani and Hashimoto 2023, section 3.2; LangFlow 2026). ``x0``, ``eps``,
``v``: the network puts out a vector, and rounding is x_0 E^T + b (Diffusion-LM, Li et al. 2022, section 4.2).

The model knows nothing of sampling, devices or files. Shape letters: B batch, L positions, D latent dimension, V words.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.config import FORMAT_VERSION, UserError, build_untrusted, to_plain
from diffusionlm.core.process import GaussianDiffusion, alpha, over_coordinates, sigma
from diffusionlm.core.sampler import Denoised
from diffusionlm.core.schedule import Gumbel, NoiseSchedule
from diffusionlm.models.backbones import Backbone, LeaveOneOut
from diffusionlm.models.spec import ModelSpec
from diffusionlm.recipe.word_init import word_vectors_from

P = TypeVar("P", bound=PreTrainedModel)

DEFAULT_EVIDENCE = 50.0
MAX_GAMMA = 12.0  # what a network is told of a noise level ends here: gamma itself is infinite at t = 0


@dataclass(frozen=True)
class ModelConfig(ModelSpec, name="diffusion"):
    """What a diffusion model is made of, apart from its vocabulary.

    Args:
        dimension: D, the coordinates of a word vector.
        backbone: the network.
        schedule: the noise schedule; a ``gumbel`` left at its defaults starts from the vocabulary's geometry.
        prediction: what the network puts out.
        embedding: ``normalised`` rows of norm sqrt(D), ``free`` rows, or ``frozen`` (normalised, as they start).
        cooccurrence: how much of a normalised row's squared length starts from the words' neighbours in the training texts,
            so that words that can replace each other start close together; the rest is random.
        initial_deviation: of the free rows' coordinates, at the start.
        evidence: the ceiling of alpha / sigma^2 in the evidence added to the logits; 0 leaves the evidence out.
        evidence_input: whether the network is also told, as word probabilities, what the noisy vector says by itself.
        self_conditioning: whether the network also sees its last estimate (Chen et al. 2023, Analog Bits).
        learned_variance: whether the network also puts out variances (Nichol and Dhariwal 2021, section 3.1).
        explicit_length: lengths are drawn first and only real tokens are modelled; otherwise PAD is a word like others.
    """

    dimension: int = 64
    backbone: Backbone = field(default_factory=LeaveOneOut)
    schedule: NoiseSchedule = field(default_factory=Gumbel)
    prediction: Literal["logits", "x0", "eps", "v"] = "logits"
    embedding: Literal["normalised", "free", "frozen"] = "normalised"
    cooccurrence: float = 0.85
    initial_deviation: float = 1.0
    evidence: float = DEFAULT_EVIDENCE
    evidence_input: bool = True
    self_conditioning: bool = True
    learned_variance: bool = False
    explicit_length: bool = True

    def __post_init__(self) -> None:
        """Check what must hold between the settings."""
        check_vectors(self.dimension, self.cooccurrence)
        if self.learned_variance and self.prediction == "logits":
            raise UserError("learned_variance: expected false with prediction 'logits', whose output is no vector")
        if self.backbone.excludes_self and not (self.prediction == "logits" and self.evidence):
            raise UserError(
                f"backbone: {self.backbone.name!r} does not read a word's own vector, which then must count as evidence: "
                "it needs prediction 'logits' and evidence above 0; take 'transformer' for anything else"
            )

    def make(self, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[int]], max_length: int) -> DiffusionLM:
        """Make the model; its words' vectors and a default ``gumbel`` start from ``rows``."""
        settings = self
        schedule = self.schedule
        if isinstance(schedule, Gumbel) and schedule.fit == Gumbel().fit:
            counts = Counter(i for row in rows for i in row[1:-1])
            total = sum(counts.values())
            own_share = 1 - (self.cooccurrence if self.embedding != "free" else 0)
            entropy = -sum(n / total * math.log(n / total) for n in counts.values())
            start = Gumbel.for_words(self.dimension, len(tokenizer), entropy, own_share)
            settings = replace(self, schedule=replace(schedule, **start.fit))
        model = DiffusionLM(
            DiffusionLMConfig(
                settings=to_plain(settings),
                vocabulary=len(tokenizer),
                max_tokens=max_length,
                special_ids=special_ids(tokenizer),
            )
        )
        model.start_words(rows)
        return model

    def load(self, folder: str | Path) -> DiffusionLM:
        """Read a diffusion model."""
        return DiffusionLM.load(folder)

    def describes(self, model: PreTrainedModel) -> bool:
        """Compare all but the schedule, which may have been learned."""
        return isinstance(model, DiffusionLM) and replace(model.settings, schedule=self.schedule) == self


class DiffusionLMConfig(PreTrainedConfig):
    """The saved form of a model's config: ``settings`` is a plain ``ModelConfig``."""

    model_type = "diffusionlm"
    attribute_map: ClassVar[dict[str, str]] = {"vocab_size": "vocabulary", "max_position_embeddings": "max_tokens"}

    def __init__(
        self,
        settings: dict[str, Any] | None = None,
        vocabulary: int = 4,
        max_tokens: int = 64,
        length_counts: list[int] | None = None,
        special_ids: dict[str, int] | None = None,
        format_version: int = FORMAT_VERSION,
        **kwargs: Any,
    ) -> None:
        """Keep plain numbers and strings only.

        Args:
            settings: a ``ModelConfig`` in plain form.
            vocabulary: V, words.
            max_tokens: of a text, START and END included.
            length_counts: how many training texts had 0, 1, 2, ... tokens.
            special_ids: the ids of ``pad``, ``unk``, ``start`` and ``end``.
            format_version: of the folder; a newer one is refused.
            **kwargs: transformers' own.
        """
        super().__init__(**kwargs)
        self.settings = settings or to_plain(ModelConfig())
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens
        self.length_counts = length_counts or []
        self.special_ids = special_ids or {"pad": 0, "unk": 1, "start": 2, "end": 3}
        self.format_version = format_version


def check_vectors(dimension: int, cooccurrence: float) -> None:
    """Check what every model on word vectors has. Raises UserError."""
    if dimension < 1:
        raise UserError(f"dimension: expected at least 1, got {dimension}")
    if not 0 <= cooccurrence < 1:
        raise UserError(f"cooccurrence: expected a share of at least 0 and below 1, got {cooccurrence}")


class WordVectorModel(PreTrainedModel):
    """Base of the models on word vectors; its ``settings`` say ``dimension``, ``embedding`` and ``cooccurrence``."""

    settings: Any  # a ModelSpec of the kind
    embedding: nn.Embedding

    def make_embedding(self) -> None:
        """Make the table of the vectors, (V, D)."""
        self.embedding = nn.Embedding(self.config.vocabulary, self.settings.dimension)
        self.embedding.weight.requires_grad_(self.settings.embedding != "frozen")

    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights as BERT does, except word vectors."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if module is self.embedding:
            nn.init.normal_(module.weight, std=self._vector_deviation)

    @property
    def _vector_deviation(self) -> float:
        return 1.0

    def start_words(self, rows: Sequence[Sequence[int]]) -> None:
        """Start normalised vectors from the words' neighbours in ``rows`` of token ids, where the settings say so."""
        if self.settings.cooccurrence and self.settings.embedding != "free":
            share = self.settings.cooccurrence
            vectors = word_vectors_from(rows, self.config.vocabulary, self.settings.dimension, share)
            self.embedding.weight.data.copy_(vectors)

    def word_vectors(self) -> Tensor:
        """Return E (V, D) in fp32: the rows as the process uses them."""
        weight = self.embedding.weight.float()
        if self.settings.embedding == "free":
            return weight
        return nn.functional.normalize(weight, dim=-1) * math.sqrt(self.settings.dimension)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up word vectors: ids (B, L) to x_0 (B, L, D)."""
        # The backward of indexing, E[ids], is not deterministic with two threads; that of F.embedding is.
        return nn.functional.embedding(ids, self.word_vectors())

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a model folder, safetensors and JSON only.

        Raises:
            UserError: no such folder, another kind of model, of a newer format, or damaged.
        """
        model = load_pretrained(cls, folder)
        model.embedding.weight.requires_grad_(model.settings.embedding != "frozen")  # transformers makes all trainable
        return model


class DiffusionLM(WordVectorModel):
    """A continuous-embedding diffusion language model."""

    settings: ModelConfig
    config_class = DiffusionLMConfig
    base_model_prefix = "diffusionlm"
    main_input_name = "xt"
    output_modalities = ("text",)

    def __init__(self, config: DiffusionLMConfig) -> None:
        """Make a model with random weights.

        Raises:
            UserError: settings that are not this library's, or need code that is not imported.
        """
        super().__init__(config)
        self.settings = build_untrusted(ModelConfig, config.settings, "settings")
        self.diffusion = GaussianDiffusion(self.settings.schedule)
        D, V = self.settings.dimension, config.vocabulary
        vectors = self.settings.prediction != "logits"
        self.make_embedding()
        self.rounding_bias = nn.Parameter(torch.zeros(V)) if vectors else None
        outputs = D * (2 if self.settings.learned_variance else 1) if vectors else V
        inputs = D * (2 if self.settings.self_conditioning else 1) + (V if self._reads_evidence else 0)
        self.network = self.settings.backbone.build(inputs, outputs, config.max_tokens)
        self.post_init()  # type: ignore[no-untyped-call]

    @property
    def _vector_deviation(self) -> float:
        return self.settings.initial_deviation if self.settings.embedding == "free" else 1.0

    @property
    def _reads_evidence(self) -> bool:
        return self.settings.evidence_input and self.settings.prediction == "logits"

    def set_schedule(self, schedule: NoiseSchedule) -> None:
        """Take another schedule (a learned one, as training goes) and write it into the config."""
        self.settings = replace(self.settings, schedule=schedule)
        self.diffusion = GaussianDiffusion(schedule)
        self.config.settings = to_plain(self.settings)

    def forward(
        self,
        xt: Tensor,
        t: Tensor,
        mask: Tensor | None = None,
        x0_previous: Tensor | None = None,
        evidence_mask: Tensor | None = None,
    ) -> Denoised:
        """Denoise ``xt`` (B, L, D) at times ``t`` (B,) or (B, L).

        ``mask`` (B, L) is True at real tokens; ``x0_previous`` (B, L, D) is the last estimate, for self-conditioning;
        ``evidence_mask`` is as in ``token_logits``.
        """
        if self.settings.prediction == "logits":
            logits = self.token_logits(xt, t, mask, x0_previous, evidence_mask)
            with torch.autocast(xt.device.type, enabled=False):
                return Denoised(logits.softmax(-1) @ self.word_vectors(), logits)
        output = self._output(xt, t, mask, x0_previous)
        with torch.autocast(xt.device.type, enabled=False):
            output, share = output.chunk(2, -1) if self.settings.learned_variance else (output, None)
            x0 = self._clean(output, xt, t)
            return Denoised(x0, self.round(x0), None if share is None else share.sigmoid())

    def token_logits(
        self,
        xt: Tensor,
        t: Tensor,
        mask: Tensor | None = None,
        x0_previous: Tensor | None = None,
        evidence_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the logits (B, L, V) of ``forward`` alone: training needs no x_0, a tenth of a small model's work.

        ``evidence_mask`` (B, L) is False where the evidence is left out: what the context alone says, if the backbone
        leaves out a word's own vector.
        """
        # Mixed precision is for the network: evidence and softmax lose words in 8 bits of mantissa.
        with torch.autocast(xt.device.type, enabled=False):
            evidence = self._evidence(xt, t)
            inputs = [evidence.detach().softmax(-1)] if self._reads_evidence else []
        output = self._output(xt, t, mask, x0_previous, *inputs)
        if not self.settings.evidence:
            return output
        return output + (evidence if evidence_mask is None else torch.where(evidence_mask[..., None], evidence, 0))

    def _output(self, xt: Tensor, t: Tensor, mask: Tensor | None, x0_previous: Tensor | None, *more: Tensor) -> Tensor:
        gamma = self.diffusion.schedule.gamma(t)
        # Beside the word probabilities the vector itself is scaled down with its signal: pure noise is then no input.
        latents = [over_coordinates(alpha(gamma), xt) * xt if more else xt, *more]
        if self.settings.self_conditioning:
            latents.insert(1, torch.zeros_like(xt) if x0_previous is None else x0_previous)
        told = gamma.clamp(-MAX_GAMMA, MAX_GAMMA).float()
        output: Tensor = self.network(torch.cat(latents, -1), t.float(), told, mask).float()
        return output

    def _evidence(self, xt: Tensor, t: Tensor) -> Tensor:
        """Return what each noisy vector says of its own word, log-probabilities (B, L, V) up to a constant."""
        gamma = self.diffusion.schedule.gamma(t)
        ceiling = self.settings.evidence or DEFAULT_EVIDENCE
        factor = (alpha(gamma) / sigma(gamma) ** 2).clamp(max=ceiling)
        return over_coordinates(factor, xt) * xt @ self.word_vectors().T

    def _clean(self, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        match self.settings.prediction:
            case "eps":
                return self.diffusion.x0_from_eps(output, xt, t)
            case "v":
                return self.diffusion.x0_from_v(output, xt, t)
        return output

    def round(self, x: Tensor) -> Tensor:
        """Return the rounding logits x E^T + b (B, L, V) of vectors ``x`` (B, L, D)."""
        logits = x @ self.word_vectors().T
        return logits if self.rounding_bias is None else logits + self.rounding_bias


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the ids of ``pad``, ``unk``, ``start`` and ``end``, of those that the tokenizer has."""
    names = {"pad": tokenizer.pad_token_id, "unk": tokenizer.unk_token_id}
    names |= {"start": tokenizer.bos_token_id, "end": tokenizer.eos_token_id}
    return {name: i for name, i in names.items() if i is not None}


def model_folder(folder: str | Path) -> Path:
    """Return ``folder``, or the model in it where it is a run's."""
    inner = Path(folder) / "model"
    return inner if not (Path(folder) / "config.json").exists() and (inner / "config.json").exists() else Path(folder)


def load_pretrained(kind: type[P], folder: str | Path) -> P:
    """Read a model folder of one of the library's kinds, safetensors and JSON only.

    Raises:
        UserError: no such folder, another kind of model, of a newer format, or damaged.
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
        raise UserError(f"{path}: expected model_type {wanted!r}, got {found!r}; this is another kind of model")
    if not isinstance(plain.get("format_version"), int) or plain["format_version"] > FORMAT_VERSION:
        found = plain.get("format_version")
        raise UserError(f"{path}: format {found} is newer than this library reads ({FORMAT_VERSION}); update the library")
    try:
        loaded: Any = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder}: the model is damaged or incomplete: {' '.join(str(error).split())}") from None
    report: dict[str, list[str]] = loaded[1]
    if wrong := sorted(report["missing_keys"]) + sorted(report["unexpected_keys"]):
        raise UserError(f"{folder}: the weights do not fit the config: {wrong[0]} and {len(wrong) - 1} more differ")
    model: P = loaded[0]
    return model


AutoConfig.register(DiffusionLMConfig.model_type, DiffusionLMConfig)
AutoModel.register(DiffusionLMConfig, DiffusionLM)


def text_mask(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return the mask (B, L), True at the tokens of texts of ``lengths`` (start and end counted)."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(device)


def boundaries(mask: Tensor, special: dict[str, int], words: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return where start and end are in texts of ``mask`` (B, L), and ids (B, L) that hold them there, PAD elsewhere.

    So they hold ``words`` (B, L) as well, where these are not -1.
    """
    ids = torch.full(mask.shape, special["pad"], device=mask.device)
    ids[:, 0] = special["start"]
    ids.scatter_(1, mask.sum(1, keepdim=True) - 1, special["end"])
    known = (ids == special["start"]) | (ids == special["end"])
    return (known, ids) if words is None else (known | (words >= 0), torch.where(words >= 0, words, ids))
