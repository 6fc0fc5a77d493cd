"""Diffusion models with a config, loading and saving: ``DiffusionLM`` is ``core.model.DenoisingModel`` as transformers has it.

Shape letters: B batch, L positions, D latent dimension, V words.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.config import FORMAT_VERSION, UserError, build_untrusted, to_plain
from diffusionlm.core.model import DEFAULT_EVIDENCE, MAX_GAMMA, DenoisingModel, WordVectors
from diffusionlm.core.objective import Batch
from diffusionlm.core.process import Process, VariancePreserving
from diffusionlm.core.sampler import Denoised
from diffusionlm.core.schedule import NoiseSchedule
from diffusionlm.data.folders import damage_errors
from diffusionlm.data.pieces import LONGEST
from diffusionlm.data.rows import token_counts
from diffusionlm.data.tokenizers import of_sources
from diffusionlm.models.backbones import Backbone
from diffusionlm.models.conditional import ConditionalSpec
from diffusionlm.models.conditions import Condition, Conditioned
from diffusionlm.models.io import SavedConfig, SpecialToken, Whole, check_special_ids, load_pretrained, special_ids
from diffusionlm.models.joint import JointHead
from diffusionlm.models.large_vocabulary import computes_in_chunks, estimate_in_chunks, losses_in_chunks
from diffusionlm.models.leave_one_out import LeaveOneOut
from diffusionlm.models.spec import ModelSpec
from diffusionlm.models.student import StepInput, Toward
from diffusionlm.recipe.chunks import token_losses
from diffusionlm.recipe.gumbel import Gumbel
from diffusionlm.recipe.word_init import word_vectors_from


class WordVectorSpec(ConditionalSpec):
    """Base of the hyperparameters of models on word vectors."""

    dimension: int
    backbone: Backbone
    cooccurrence: float

    def __post_init__(self) -> None:
        self.expect("1 to 100000", "dimension")
        self.expect("a share from 0 to below 1", "cooccurrence")
        if self.condition is not None and self.condition.has_states and not self.backbone.has_context:
            raise UserError(
                f"condition: the backbone {self.backbone.name!r} attends to no source; take 'transformer' or 'leave-one-out', "
                "or the condition 'partial-noising'"
            )
        if self.condition is not None and self.condition.shares_length and self.explicit_length:
            raise UserError("condition: the layout 'diffuseq' fills texts up with PAD: it needs explicit_length false")

    @property
    def excludes_self(self) -> bool:
        return self.backbone.excludes_self


@dataclass(frozen=True)
class ModelConfig(WordVectorSpec, name="diffusion"):
    """Hyperparameters of a diffusion model.

    Args:
        dimension: D, the number of coordinates of a word vector.
        backbone: the network.
        schedule: the noise schedule; a ``gumbel`` with default parameters is initialised for the vocabulary.
        prediction: the output of the network, see ``core.model``.
        embedding: ``normalised`` rows of norm sqrt(D), ``free`` rows, or ``frozen`` (normalised, as they start).
        cooccurrence: share of a normalised row's squared norm that starts from co-occurrences in the training texts, so that
            interchangeable words start close together; the rest is random.
        initial_deviation: standard deviation of the coordinates of free rows at the start.
        evidence: ceiling of alpha / sigma^2 in the token likelihood term log p(x_t | w) added to the logits; 0 leaves it out.
        evidence_input: whether the network also receives the token posterior given each noisy vector alone.
        self_conditioning: whether the network also receives its last estimate of x_0 (Analog Bits, Chen et al. 2023).
        learned_variance: whether the network also outputs variances (Nichol and Dhariwal 2021, section 3.1).
        process: the Gaussian process; its schedule is that of the model.
        condition: a further input that samples are conditioned on.
        explicit_length: whether lengths are drawn first and only non-padding tokens modelled; else PAD is a word like others.
        distilled_for: of a distilled model, the evaluations per sample that it is made for; see ``models.student``.
        joint_width: width of the layer that predicts the tokens of a text jointly, if there is one; see ``models.joint``.
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
    process: Process = field(default_factory=VariancePreserving)
    condition: Condition | None = None
    distilled_for: int | None = None
    joint_width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "process", replace(self.process, schedule=self.schedule))  # type: ignore[type-var]
        self.expect("0 or more", "evidence", "initial_deviation")
        self.expect("1 to 10000", "distilled_for", "joint_width")
        if self.distilled_for and not self.has_logits:
            raise UserError("distilled_for: a distilled model needs prediction 'logits'")
        if self.joint_width and not (self.has_logits and self.explicit_length):
            raise UserError("joint_width: a joint prediction of the tokens needs prediction 'logits' and explicit_length")
        if self.joint_width and self.distilled_for:
            raise UserError("joint_width: a joint head draws tokens, and the steps of a model with distilled_for draw none")
        if self.learned_variance and self.has_logits:
            raise UserError("learned_variance: expected false with prediction 'logits', whose output is no vector")
        if self.excludes_self and not (self.has_logits and self.evidence):
            raise UserError(
                f"backbone: {self.backbone.name!r} does not read a word's own vector, which then must count as evidence: "
                "it needs prediction 'logits' and evidence above 0; take 'transformer' for anything else"
            )

    @property
    def has_logits(self) -> bool:
        return self.prediction == "logits"

    @property
    def self_conditions(self) -> bool:
        return self.self_conditioning

    def make(self, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[int]], max_length: int) -> DiffusionLM:
        """Return a new model; ``rows`` initialise its word vectors and a default ``gumbel`` schedule."""
        settings, schedule = self, self.schedule
        if isinstance(schedule, Gumbel) and schedule.fit == Gumbel().fit:
            counts = token_counts(rows)
            total = sum(counts.values())
            entropy = -sum(n / total * math.log(n / total) for n in counts.values())
            own_share = 1 - (self.cooccurrence if self.embedding != "free" else 0)
            start = Gumbel.for_words(self.dimension, len(tokenizer), entropy, own_share)
            settings = replace(self, schedule=replace(schedule, **start.fit))
        return DiffusionLM.new(settings, tokenizer, rows, max_length)

    def load(self, folder: str | Path) -> DiffusionLM:
        return DiffusionLM.load(folder).with_parts(self)

    def unfitted(self, settings: Self) -> Self:
        return replace(super().unfitted(settings), schedule=self.schedule)


@dataclass(frozen=True, kw_only=True)
class SavedDiffusionLM(SavedConfig):
    """What ``config.json`` of a model on word vectors has to hold and may hold."""

    length_counts: list[Whole]
    special_ids: dict[SpecialToken, Whole]
    source_vocabulary: Whole | None = None
    context_tokens: Whole = 0
    long_texts: list[tuple[Whole, Whole]] = field(default_factory=list)
    packed_rows: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.context_tokens <= (most := max(0, self.max_tokens - 3)):
            raise UserError(f"context_tokens: expected 0 to {most}, got {self.context_tokens}")
        if not all(self.max_tokens < tokens <= LONGEST and number > 0 for tokens, number in self.long_texts):
            raise UserError(f"long_texts: expected pairs of {self.max_tokens + 1} to {LONGEST} tokens and of a number of texts")
        if self.model_type == "diffusionlm" and "schedule" not in self.settings:
            raise UserError("settings: expected the noise schedule that the model was trained with, got none")
        check_special_ids(self.special_ids, self.vocabulary)
        self.expect("1 to 10000000", "source_vocabulary")
        if len(self.length_counts) > self.max_tokens + 1:
            longest = f"a text of {len(self.length_counts) - 1} tokens"
            raise UserError(f"length_counts: expected texts of up to max_tokens {self.max_tokens}, got {longest}")


class DiffusionLMConfig(PreTrainedConfig):
    """The saved form of a model's config, plain numbers and strings; a newer ``format_version`` is refused.

    Args:
        settings: a ``ModelConfig`` in plain form.
        vocabulary: V, the number of words.
        max_tokens: the most tokens of a text, BOS and EOS included.
        length_counts: number of training texts with 0, 1, 2, ... tokens.
        special_ids: the ids of ``pad``, ``unk``, ``start`` and ``end``, without those that the tokenizer lacks.
        source_vocabulary: number of tokens of the sources' tokenizer, where it is not that of the texts.
        context_tokens: given tokens of each later piece of a long text, where the model was trained with them.
        long_texts: pairs of a number of tokens above ``max_tokens`` and of training texts with so many.
        packed_rows: whether rows hold several texts, with EOS between them; see ``data.packing``.
    """

    model_type = "diffusionlm"
    saved: ClassVar[type[SavedConfig]] = SavedDiffusionLM
    place: ClassVar[str] = ""
    attribute_map: ClassVar[dict[str, str]] = {"vocab_size": "vocabulary", "max_position_embeddings": "max_tokens"}

    def __init__(
        self, settings: dict[str, Any] | None = None, vocabulary: int = 4, max_tokens: int = 64,
        length_counts: list[int] | None = None, special_ids: dict[str, int] | None = None,
        format_version: int = FORMAT_VERSION, source_vocabulary: int | None = None, context_tokens: int = 0,
        long_texts: list[list[int]] | None = None, packed_rows: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.settings = settings or to_plain(ModelConfig())
        self.vocabulary, self.max_tokens, self.format_version = vocabulary, max_tokens, format_version
        self.length_counts = length_counts or []
        if source_vocabulary is not None:  # other models' files do not name it
            self.source_vocabulary = source_vocabulary
        if context_tokens:  # likewise
            self.context_tokens, self.long_texts = context_tokens, long_texts or []
        if packed_rows:
            self.packed_rows = True
        self.special_ids = special_ids or {"pad": 0, "unk": 1, "start": 2, "end": 3}


def _of_settings(name: str) -> Any:
    """Return the property of models that is the property ``name`` of their settings."""
    return property(lambda model: getattr(model.settings, name), doc=getattr(ModelSpec, name).__doc__)


class WordVectorModel(PreTrainedModel, WordVectors, Conditioned):
    """Base of the models on word vectors."""

    settings: Any  # a WordVectorSpec with ``embedding``
    has_logits, explicit_length = _of_settings("has_logits"), _of_settings("explicit_length")
    self_conditions, excludes_self = _of_settings("self_conditions"), _of_settings("excludes_self")

    def barred(self, token: int) -> bool:
        """Return whether ``token`` is a special one that is never predicted: EOS is, where texts follow each other in a row."""
        special = self.config.special_ids
        return token in special.values() and not (token == special["end"] and getattr(self.config, "packed_rows", False))

    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights as BERT does, except word vectors."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if module is self.embedding:
            deviation = 1.0 if self.normalised else getattr(self.settings, "initial_deviation", 1.0)
            nn.init.normal_(module.weight, std=deviation)

    @classmethod
    def new(
        cls, settings: WordVectorSpec, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[int]], max_length: int
    ) -> Self:
        """Return a model with random weights; normalised word vectors start from co-occurrences in ``rows`` of token ids."""
        config_class: Any = cls.config_class
        ids, sources = special_ids(tokenizer), of_sources(tokenizer)
        check_special_ids(ids, len(tokenizer))
        model = cls(
            config_class(
                settings=to_plain(settings),
                vocabulary=len(tokenizer),
                max_tokens=max_length,
                special_ids=dict(ids),
                source_vocabulary=None if sources is None else len(sources),
            )
        )
        if settings.cooccurrence and model.normalised:
            vectors = word_vectors_from(rows, len(tokenizer), settings.dimension, settings.cooccurrence)
            model.embedding.weight.data.copy_(vectors)
        return model

    @classmethod
    def load(cls, folder: str | Path, base: str | Path | None = None) -> Self:
        """Load a model folder; see ``load_pretrained``."""
        model = load_pretrained(cls, folder, base)
        model.embedding.weight.requires_grad_(model.settings.embedding != "frozen")  # transformers makes all trainable
        return model


class DiffusionLM(DenoisingModel, WordVectorModel):
    """A continuous-embedding diffusion language model."""

    settings: ModelConfig
    config_class = DiffusionLMConfig
    base_model_prefix = "diffusionlm"
    main_input_name = "xt"
    output_modalities = ("text",)

    def __init__(self, config: DiffusionLMConfig) -> None:
        """Make a model with random weights. Raises UserError for settings that need code that is not imported."""
        super().__init__(config)
        settings = build_untrusted(ModelConfig, config.settings, "settings")
        self.settings, self.prediction = settings, settings.prediction
        self.process: Process = settings.process
        self.evidence, self.reads_evidence = settings.evidence, settings.evidence_input and settings.has_logits
        self.learned_variance = settings.learned_variance
        D, V = settings.dimension, config.vocabulary
        self.set_vectors(V, D, settings.embedding)
        self.rounding_bias = None if settings.has_logits else nn.Parameter(torch.zeros(V))
        inputs = D * (2 if self.self_conditions else 1) + (V if self.reads_evidence else 0)
        outputs = V if settings.has_logits else D * (2 if settings.learned_variance else 1)
        self.build_network(settings, inputs, outputs, config.max_tokens)
        self.step_input = StepInput(D, self.reads_evidence) if settings.distilled_for else None
        self.joint = JointHead(V, D, settings.joint_width) if settings.joint_width else None
        self.post_init()  # type: ignore[no-untyped-call]
        for part in (self.step_input, self.joint):
            if part is not None:
                part.reset()

    @classmethod
    def load(cls, folder: str | Path, base: str | Path | None = None) -> Self:
        model = super().load(folder, base)
        schedule = model.process.schedule
        with damage_errors(folder, "settings.schedule has no usable noise levels"):
            undefined = bool(schedule.gamma(schedule.sampling_times(8)).isnan().any())
        if undefined:
            raise UserError(f"{folder}: settings.schedule: expected a noise level at each time, got {schedule}")
        return model

    @property
    def padded_width(self) -> int | None:
        """The number of positions of every row where PAD is a word like others, else None."""
        return None if self.explicit_length else self.config.max_tokens

    def free_positions(self, batch: Batch) -> Tensor:
        """Return the positions (B, L) that are noised: all but given tokens and, with explicit lengths, BOS and EOS."""
        special = self.config.special_ids
        if not self.barred(special["end"]):  # EOS is a token like others between the ends of a row
            return nn.functional.pad(batch.free[:, 1:-1], (1, 1))
        boundary = (batch.ids == special["start"]) | (batch.ids == special["end"])
        return batch.free & ~boundary if self.explicit_length else batch.free

    def evidence_terms(self, xt: Tensor, t: Tensor, condition: Any) -> tuple[Tensor, Tensor]:
        if self.step_input is None:
            return super().evidence_terms(xt, t, condition)
        evidence, toward = self._evidence(xt, t), condition.gamma if isinstance(condition, Toward) else None
        read, counted = self.step_input.factors(self.process.schedule.gamma(t), toward)
        return read * evidence, counted * evidence

    def run_network(self, inputs: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None, condition: Any) -> Tensor:
        condition, toward = (condition.condition, condition.gamma) if isinstance(condition, Toward) else (condition, None)
        if self.step_input is not None:
            inputs = self.step_input(inputs, gamma, toward)
        return Conditioned.run_network(self, inputs, t, gamma, mask, condition)

    def token_losses(self, targets: Tensor, *inputs: Any) -> Tensor:
        """Return -log p of the ``targets`` (B, L) under the ``token_logits`` of the ``inputs``, in nats."""
        if computes_in_chunks(self, targets.numel()):
            return losses_in_chunks(self, targets, *inputs)
        return token_losses(self.token_logits(*inputs).flatten(0, 1), targets.flatten()).view(targets.shape)

    def estimate(self, xt: Tensor, *inputs: Any) -> Tensor:
        """Return the estimate of x_0 alone, (B, L, D), of a call with the same ``inputs``."""
        if computes_in_chunks(self, xt.shape[0] * xt.shape[1]):
            return estimate_in_chunks(self, xt, *inputs)
        denoised: Denoised = self(xt, *inputs)
        return denoised.x0

    def student(self, evaluations: int) -> DiffusionLM:
        """Return a copy to be distilled for a number of ``evaluations`` per sample; it starts as the same denoiser."""
        return self.with_parts(replace(self.settings, distilled_for=evaluations))

    def with_parts(self, settings: ModelConfig) -> DiffusionLM:
        """Return this model, or if it lacks parts that are added to a trained denoiser, a copy with those of ``settings``.

        The copy starts as the same denoiser.
        """
        made, width = settings.distilled_for or self.settings.distilled_for, self.settings.joint_width or settings.joint_width
        wanted = replace(self.settings, distilled_for=made, joint_width=width)
        if wanted == self.settings:
            return self
        config: Any = copy.deepcopy(self.config)
        config.settings = to_plain(wanted)
        model = DiffusionLM(config)
        own = model.state_dict()
        model.load_state_dict({name: value for name, value in self.state_dict().items() if name in own}, strict=False)
        return model

    @property
    def clean_level(self) -> float:
        return max(-MAX_GAMMA, float(self.process.schedule.gamma(torch.zeros((), dtype=torch.float64))))

    def clean_inputs(self, ids: Tensor) -> Tensor:
        words = self.encode(ids)
        evidence = [nn.functional.one_hot(ids, self.config.vocabulary).to(words)] if self.reads_evidence else []
        return torch.cat([words, *([words] if self.self_conditions else []), *evidence], -1)

    def denoise(self, xt: Tensor, t: Tensor, mask: Tensor | None = None, condition: Any = None) -> Denoised:
        """Denoise, if the model is self-conditioned a second time with the first estimate."""
        estimate = self(xt, t, mask, condition=condition).x0 if self.self_conditions else None
        denoised: Denoised = self(xt, t, mask, estimate, condition=condition)
        return denoised

    def set_schedule(self, schedule: NoiseSchedule) -> None:
        """Replace the noise schedule, such as by a learned one, in the process and in the config."""
        self.settings = replace(self.settings, schedule=schedule)
        self.process = type(self.process)(**{**vars(self.process), "schedule": schedule})
        base = self.settings if self.branch is None else replace(self.settings, condition=None)
        self.config.settings = to_plain(base)


AutoConfig.register(DiffusionLMConfig.model_type, DiffusionLMConfig)
AutoModel.register(DiffusionLMConfig, DiffusionLM)
