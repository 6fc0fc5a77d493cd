"""What every kind of model has in common when it writes: settings of the sampling, rows of texts, model folders.

Each text draws its noise, and its length where none is given, from the seed and its own index, so the first n texts
depend neither on how many are asked for nor, beyond rounding, on the batch size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import sacrebleu
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.config import Settings, UserError, build, build_untrusted, merge, to_plain, upgraded
from diffusionlm.controls import Control, Outcome
from diffusionlm.core.guidance import Guidance
from diffusionlm.core.sampler import DDPM, Sampler
from diffusionlm.data.tokenizers import decode_texts, load_tokenizer
from diffusionlm.models.io import model_folder
from diffusionlm.pipelines.gradient import Gradient
from diffusionlm.pipelines.particles import Particles

M = TypeVar("M", bound=PreTrainedModel)
Watch = Callable[[Any, list[str]], None]  # gets what has the time ``t``, a State for diffusion, and the texts as they read


@dataclass(frozen=True)
class SamplingConfig(Settings):
    """How texts are sampled.

    Args:
        steps: from noise to text.
        passes: evaluations of the network in each step, on the same noisy vectors; each is told the estimate of the one
            before, as in training, so that words which depend on each other can settle before the step is taken.
        sampler: the sampler.
        temperature: of the token posterior; below 1 is more fluent and less diverse. Needs prediction ``logits``.
        step_temperature: of the posterior whose mean the step moves toward; empty is ``temperature``. Near 0 the step moves
            toward the likeliest word, while the network goes on being told all that is possible.
        sweeps: sweeps over the finished text in which each word is asked for again, given all the others. Needs
            prediction ``logits`` and training at mixed noise levels. A sweep takes eleven evaluations, or one where the
            backbone leaves out a word's own vector: it then changes the words that fit least.
        sweep_odds: how much likelier another word must be to take its place.
        guidance: how controls with a gradient act.
        particles: how controls that only score finished texts act.
        clamp: whether each predicted vector is moved to its nearest word (Diffusion-LM's clamping trick).
        length: tokens a text, start and end not counted; empty draws from the training texts' lengths.
        candidates: of which minimum-Bayes-risk decoding keeps one (Kumar and Byrne 2004); 1 is plain sampling.
        batch_size: texts sampled together.
        seed: of the noise and the lengths.
    """

    steps: int = 28
    passes: int = 2
    sampler: Sampler = field(default_factory=DDPM)
    temperature: float = 1.0
    step_temperature: float | None = None
    sweeps: int = 6
    sweep_odds: float = 3.0
    guidance: Guidance = field(default_factory=Gradient)
    particles: Particles = field(default_factory=Particles)
    clamp: bool = False
    length: int | None = None
    candidates: int = 1
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("steps", "passes", "candidates", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("temperature", "step_temperature"):
            if (temperature := getattr(self, name)) is not None and not 0 < temperature < math.inf:
                raise UserError(f"{name}: expected a positive number, got {temperature}")
        if self.sweeps < 0:
            raise UserError(f"sweeps: expected 0 or more, got {self.sweeps}")
        if self.sweep_odds < 1:
            raise UserError(f"sweep_odds: expected at least 1, got {self.sweep_odds}")
        if self.seed < 0:
            raise UserError(f"seed: expected 0 or more, got {self.seed}")


@dataclass(frozen=True)
class Generated:
    """A text: its number in the run, the seed, its length in tokens (start and end not counted)."""

    text: str
    index: int
    seed: int
    length: int


@dataclass(frozen=True)
class Controlled(Generated):
    """A text that was asked for: how it fared with each control, and how many texts were written to get it."""

    controls: tuple[Outcome, ...]
    tried: int


@dataclass
class BasePipeline(Generic[M]):
    """Base of the pipelines, one for each kind of model: a model, its tokenizer, and defaults for the sampling."""

    model: M
    tokenizer: PreTrainedTokenizerFast
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    dtype: torch.dtype = torch.float32
    folder: Path | None = None  # it was read from

    @staticmethod
    def load_model(folder: Path) -> M:
        """Read the model of a model folder. Raises UserError where it is not of this kind, or damaged."""
        raise NotImplementedError

    def check(self, sampling: SamplingConfig) -> None:
        """Check a sampling request. Raises UserError where a setting does not go with the model."""

    def sample_ids(self, seeds: Sequence[Sequence[int]], sampling: SamplingConfig, watch: Watch | None) -> list[list[int]]:
        """Sample a text for each seed; return their token ids without start, end and padding."""
        raise NotImplementedError

    def stream(
        self,
        count: int,
        sampling: SamplingConfig | None = None,
        watch: Watch | None = None,
        controls: Sequence[str | Control] = (),
        tries: int = 1,
    ) -> Iterator[Generated]:
        """Yield ``count`` texts in order, each as soon as it is known.

        ``watch`` is called after every step with the state (its ``t`` falls from 1) and the texts as they now read.

        Raises:
            UserError: a setting that does not go with the model; ``controls``, which only diffusion models can be asked.
        """
        if controls:
            raise UserError(f"control: a {self.model.config.model_type} model cannot be steered; only diffusion models can")
        sampling = self.sampling if sampling is None else sampling
        self.check(sampling)
        per_batch = max(1, sampling.batch_size // sampling.candidates)
        for first in range(0, count, per_batch):
            indices = range(first, min(first + per_batch, count))
            seeds = [(sampling.seed, index, c) for index in indices for c in range(sampling.candidates)]
            ids = self.sample_ids(seeds, sampling, watch)
            texts = decode_texts(self.tokenizer, ids)
            for position, index in enumerate(indices):
                group = slice(position * sampling.candidates, (position + 1) * sampling.candidates)
                best = group.start + minimum_bayes_risk(texts[group])
                yield Generated(texts[best], index, sampling.seed, len(ids[best]))

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu", dtype: str = "fp32") -> Self:
        """Read a model folder; ``dtype`` is that of the network's arithmetic, fp32 or bf16.

        Raises:
            UserError: not a model folder, damaged, of a newer format; an unknown device or dtype.
        """
        folder = model_folder(folder)
        model = cls.load_model(folder)
        tokenizer = load_tokenizer(folder)
        if len(tokenizer) != model.config.vocab_size:
            raise UserError(f"{folder}: the tokenizer has {len(tokenizer)} words, the model {model.config.vocab_size}")
        return cls(model, tokenizer, saved_sampling(folder), placed(model, device, dtype), folder)

    def __call__(self, count: int, **changes: Any) -> list[Generated]:
        """Write ``count`` texts; ``changes`` are fields of ``SamplingConfig``, components also by name.

        Raises:
            UserError: as ``stream``; there is no such field, or its value is wrong.
        """
        return list(self.stream(count, self.changed(changes)))

    def changed(self, changes: Mapping[str, Any]) -> SamplingConfig:
        """Return the defaults with ``changes``. Raises UserError where a field or a value is wrong."""
        return build(SamplingConfig, merge(to_plain(self.sampling), to_plain(changes)))

    def preview(self, count: int) -> list[str]:
        """Write ``count`` texts quickly, for a look during training."""
        return [row.text for row in self.stream(count, replace(self.sampling, candidates=1))]


def check_length(length: int, longest: int) -> None:
    """Check a number of tokens, start and end not counted. Raises UserError where it is not from 1 to ``longest``."""
    if not 1 <= length <= longest:
        raise UserError(f"length: expected 1 to {longest} tokens for this model, got {length}")


def check_no_latents(sampling: SamplingConfig, kind: str) -> None:
    """Check that nothing is asked of ``kind`` that only a model of word vectors does. Raises UserError."""
    for name, without in {"clamp": False, "passes": 1, "step_temperature": None, "sweeps": 0}.items():
        if getattr(sampling, name) not in (without, getattr(SamplingConfig(), name)):
            raise UserError(f"{name}: {kind} has no noisy vectors; leave it out")


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def placed(model: PreTrainedModel, device: str, dtype: str) -> torch.dtype:
    """Move a model that is to be used, not trained, to ``device``; return the type that ``dtype`` names.

    Raises:
        UserError: an unknown device or dtype.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    try:
        torch.nn.Module.to(model, torch.device(device)).train(False)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return DTYPES[dtype]


def saved_sampling(folder: str | Path) -> SamplingConfig:
    """Return the sampling defaults saved with a model, or the library's where there are none.

    Raises:
        UserError: they cannot be read.
    """
    path = model_folder(folder) / "sampling.json"
    if not path.exists():
        return SamplingConfig()
    try:
        plain = json.loads(path.read_text())
        if isinstance(plain, dict) and plain.pop("format_version", 1) == 1:
            plain = upgraded(plain, "sampling")
        return build_untrusted(SamplingConfig, plain, str(path))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: the sampling defaults cannot be read: {error}") from None


def minimum_bayes_risk(candidates: Sequence[str]) -> int:
    """Return the number of the candidate with the highest mean BLEU against the others; the first among equals.

    Kumar and Byrne 2004; Diffusion-LM, section 4.4.
    """
    if len(candidates) < 3:
        return 0
    gains = [
        sum(sacrebleu.sentence_bleu(text, [other]).score for j, other in enumerate(candidates) if j != i)
        for i, text in enumerate(candidates)
    ]
    return max(range(len(gains)), key=gains.__getitem__)
