"""Model, tokenizer and sampling in one call: noise in, texts out.

Each text draws its noise, and its length where none is given, from the seed and its own index, so the first n texts
depend neither on how many are asked for nor, beyond rounding, on the batch size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy
import sacrebleu
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from diffusionlm.config import Settings, UserError, build_untrusted
from diffusionlm.model import DiffusionLM, model_folder
from diffusionlm.sampling import DDPM, Denoise, Denoised, RowNoise, Sampler, State, clamp, correct, given, sample, tempered
from diffusionlm.tokenizer import decode_texts, load_tokenizer

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
        corrections: sweeps over the finished text in which each word is asked for again, given all the others. Needs
            prediction ``logits`` and training at mixed noise levels.
        correction_odds: how much likelier another word must be to take its place.
        clamp: whether each predicted vector is moved to its nearest word (Diffusion-LM's clamping trick).
        length: tokens a text, start and end not counted; empty draws from the training texts' lengths.
        candidates: of which minimum-Bayes-risk decoding keeps one (Kumar and Byrne 2004); 1 is plain sampling.
        batch_size: texts sampled together.
        seed: of the noise and the lengths.
    """

    steps: int = 128
    passes: int = 1
    sampler: Sampler = field(default_factory=DDPM)
    temperature: float = 1.0
    step_temperature: float | None = None
    corrections: int = 0
    correction_odds: float = 3.0
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
            if (temperature := getattr(self, name)) is not None and temperature <= 0:
                raise UserError(f"{name}: expected a positive number, got {temperature}")
        if self.corrections < 0:
            raise UserError(f"corrections: expected 0 or more, got {self.corrections}")
        if self.correction_odds < 1:
            raise UserError(f"correction_odds: expected at least 1, got {self.correction_odds}")
        if self.seed < 0:
            raise UserError(f"seed: expected 0 or more, got {self.seed}")


@dataclass(frozen=True)
class Generated:
    """A text: its number in the run, the seed, its length in tokens (start and end not counted)."""

    text: str
    index: int
    seed: int
    length: int


@dataclass
class Writer(Generic[M]):
    """Base of the pipelines, one for each kind of model: a model, its tokenizer, and defaults for the sampling."""

    model: M
    tokenizer: PreTrainedTokenizerFast
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    dtype: torch.dtype = torch.float32

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
    ) -> Iterator[Generated]:
        """Yield ``count`` texts in order, each as soon as it is known.

        ``watch`` is called after every step with the state (its ``t`` goes from 1 to 0) and the texts as they now read.

        Raises:
            UserError: a setting that does not go with the model.
        """
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
        return cls(model, tokenizer, saved_sampling(folder), placed(model, device, dtype))

    def __call__(self, count: int, **changes: Any) -> list[Generated]:
        """Write ``count`` texts; ``changes`` are fields of ``SamplingConfig``."""
        return list(self.stream(count, replace(self.sampling, **changes)))

    def preview(self, count: int) -> list[str]:
        """Write ``count`` texts quickly, for a look during training."""
        return [row.text for row in self.stream(count, replace(self.sampling, candidates=1))]


class Pipeline(Writer[DiffusionLM]):
    """Writes texts with a diffusion model, its tokenizer, and defaults for the sampling."""

    @staticmethod
    def load_model(folder: Path) -> DiffusionLM:
        """Read a diffusion model."""
        return DiffusionLM.load(folder)

    def preview(self, count: int) -> list[str]:
        """Write ``count`` texts in 32 steps at most."""
        steps = min(32, self.model.settings.schedule.max_steps)
        return [row.text for row in self.stream(count, replace(self.sampling, steps=steps, candidates=1))]

    def check(self, sampling: SamplingConfig) -> None:
        """Check steps, temperature and length."""
        settings, longest = self.model.settings, self.model.config.max_tokens - 2
        if sampling.steps > settings.schedule.max_steps:
            settings.schedule.sampling_times(sampling.steps)
        if settings.prediction != "logits" and (sampling.temperature, sampling.step_temperature or 1) != (1, 1):
            raise UserError(f"temperature: this model predicts {settings.prediction}, not logits; leave it at 1")
        if sampling.corrections and not (settings.prediction == "logits" and settings.explicit_length):
            raise UserError("corrections: needs a model that predicts logits and is told the length; leave it at 0")
        if sampling.passes > 1 and not settings.self_conditioning:
            raise UserError("passes: this model is not told its last estimate (no self-conditioning); leave it at 1")
        if sampling.length is not None:
            if not settings.explicit_length:
                raise UserError("length: this model writes its own length (it models PAD); leave it empty")
            check_length(sampling.length, longest)

    def lengths(self, seeds: Sequence[Sequence[int]], sampling: SamplingConfig) -> list[int]:
        """Return tokens a text, start and end counted: given, drawn from the training texts', or the model's width."""
        config = self.model.config
        if not self.model.settings.explicit_length:
            return [config.max_tokens] * len(seeds)
        return draw_lengths(config.length_counts, seeds, sampling.length)

    @torch.no_grad()
    def sample_ids(self, seeds: Sequence[Sequence[int]], sampling: SamplingConfig, watch: Watch | None) -> list[list[int]]:
        """Run the sampler from noise, and round."""
        lengths = self.lengths(seeds, sampling)
        device = self.model.device
        width = max(lengths)
        mask = torch.arange(width) < torch.tensor(lengths)[:, None]
        noise = RowNoise([[*seed, 0] for seed in seeds], lengths)
        x = noise(torch.zeros(len(seeds), width, self.model.settings.dimension, device=device))
        states = sample(
            self.denoiser(mask.to(device), sampling), self.model.diffusion, x,
            sampler=sampling.sampler, steps=sampling.steps, noise=noise,
        )  # fmt: skip

        def rows(words: Tensor) -> list[list[int]]:
            return [self._content(row[:n].tolist()) for row, n in zip(words, lengths, strict=True)]

        last_time = float(self.model.settings.schedule.sampling_times(sampling.steps)[-2])
        for state in self._in_precision(states):
            if watch is not None or state.t == last_time:
                words = self._words(state, last=state.t == last_time)
            if watch is not None:
                watch(state, decode_texts(self.tokenizer, rows(words)))
        if sampling.corrections:
            words = self._corrected(words, mask.to(device), sampling, noise)
            if watch is not None:
                watch(state, decode_texts(self.tokenizer, rows(words)))
        return rows(words)

    def _corrected(self, words: Tensor, mask: Tensor, sampling: SamplingConfig, noise: RowNoise) -> Tensor:
        """Ask again for each word from pure noise, all the others clean."""
        known, boundary = boundaries(mask, self.model.config.special_ids)
        fixed = known | ~mask
        plain = replace(sampling, temperature=1.0, step_temperature=None, clamp=False)

        def posterior(words: Tensor, hidden: Tensor) -> Tensor:
            x0 = self.model.embed(words)
            denoise = given(self.denoiser(mask, plain), ~hidden, x0)
            with torch.autocast(mask.device.type, self.dtype, enabled=self.dtype != torch.float32):
                return denoise(noise(x0), torch.ones(len(words), device=mask.device)).logits

        words = torch.where(fixed, boundary, words)
        return correct(words, ~fixed, posterior, sweeps=sampling.corrections, odds=sampling.correction_odds)

    def _in_precision(self, states: Iterator[State]) -> Iterator[State]:
        with torch.autocast(self.model.device.type, self.dtype, enabled=self.dtype != torch.float32):
            yield from states

    def _words(self, state: State, last: bool) -> Tensor:
        """Round: the logits where the model gives them, else the final vectors (Diffusion-LM rounds x_0 itself)."""
        predicted = self.model.settings.prediction == "logits" or not last
        if predicted:
            return state.denoised.logits.argmax(-1)
        logits = self.model.round(state.x)
        if self.model.settings.explicit_length:
            logits[..., list(self.model.config.special_ids.values())] = -math.inf
        return logits.argmax(-1)

    def _content(self, ids: list[int]) -> list[int]:
        """Drop start and end; where the model writes its own length, cut the row at its end and drop padding."""
        if self.model.settings.explicit_length:
            return ids[1:-1]
        special = self.model.config.special_ids
        ids = ids[: ids.index(special["end"])] if special["end"] in ids else ids
        return [i for i in ids if i not in (special["start"], special["pad"])]

    def denoiser(self, mask: Tensor, sampling: SamplingConfig) -> Denoise:
        """Wrap the model for texts of ``mask`` (B, L): self-conditioned, special tokens barred, boundaries given."""
        model, special = self.model, self.model.config.special_ids
        E = model.word_vectors()
        explicit = model.settings.explicit_length
        barred = torch.zeros(len(E), device=mask.device)
        if explicit:
            barred[list(special.values())] = -math.inf
        attend = mask if explicit and not bool(mask.all()) else None
        predicts_words = model.settings.prediction == "logits"
        previous: list[Tensor | None] = [None]

        def denoise(xt: Tensor, t: Tensor) -> Denoised:
            for _ in range(sampling.passes):
                denoised = model(xt, t, attend, previous[0])
                denoised = replace(denoised, logits=denoised.logits + barred)
                told = tempered(denoised, E, sampling.temperature) if predicts_words else denoised
                previous[0] = told.x0
            return tempered(denoised, E, sampling.step_temperature) if sampling.step_temperature else told

        wrapped: Denoise = clamp(denoise, E) if sampling.clamp else denoise
        if not explicit:
            return wrapped
        known, ids = boundaries(mask, special)
        return given(wrapped, known | ~mask, model.embed(ids))


def check_length(length: int, longest: int) -> None:
    """Check a number of tokens, start and end not counted. Raises UserError where it is not from 1 to ``longest``."""
    if not 1 <= length <= longest:
        raise UserError(f"length: expected 1 to {longest} tokens for this model, got {length}")


def refuse_vectors(sampling: SamplingConfig, kind: str) -> None:
    """Check that nothing is asked of ``kind`` that only a model of word vectors does. Raises UserError."""
    for name in ("clamp", "passes", "step_temperature", "corrections"):
        if getattr(sampling, name) != getattr(SamplingConfig(), name):
            raise UserError(f"{name}: {kind} has no noisy vectors; leave it out")


def draw_lengths(counts: Sequence[int], seeds: Sequence[Sequence[int]], length: int | None) -> list[int]:
    """Return tokens a text, start and end counted: ``length`` and these two, or drawn from the training texts' ``counts``.

    Raises:
        UserError: neither is known.
    """
    if length is not None:
        return [length + 2] * len(seeds)
    if not sum(counts):
        raise UserError("length: this model knows no training lengths to draw from; give a length")
    cumulative = numpy.cumsum(counts) / sum(counts)
    draws = [numpy.random.default_rng([*seed, 1]).random() for seed in seeds]
    return [int(numpy.searchsorted(cumulative, draw, side="right")) for draw in draws]


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


def boundaries(mask: Tensor, special: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Return where start and end are in texts of ``mask`` (B, L), and ids (B, L) that hold them there, PAD elsewhere."""
    ids = torch.full(mask.shape, special["pad"], device=mask.device)
    ids[:, 0] = special["start"]
    ids.scatter_(1, mask.sum(1, keepdim=True) - 1, special["end"])
    return (ids == special["start"]) | (ids == special["end"]), ids


def saved_sampling(folder: str | Path) -> SamplingConfig:
    """Return the sampling defaults saved with a model, or the library's where there are none.

    Raises:
        UserError: they cannot be read.
    """
    path = model_folder(folder) / "sampling.json"
    if not path.exists():
        return SamplingConfig()
    try:
        return build_untrusted(SamplingConfig, json.loads(path.read_text()), str(path))
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
