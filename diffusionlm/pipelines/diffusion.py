"""Model, tokenizer and sampling in one call: noise in, texts out, as asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.controls import Binding, Control, annotator_for, outcomes, read_controls
from diffusionlm.core.guidance import GuidanceState
from diffusionlm.core.sampler import State, given, sample
from diffusionlm.data.batches import boundaries, text_mask
from diffusionlm.data.tokenizers import decode_texts
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.pipelines.base import (
    BasePipeline,
    Controlled,
    Generated,
    SamplingConfig,
    Watch,
    check_length,
    minimum_bayes_risk,
)
from diffusionlm.pipelines.denoiser import WordDenoiser
from diffusionlm.pipelines.lengths import blank, draw_lengths
from diffusionlm.pipelines.noise import RowNoise, generator_of
from diffusionlm.pipelines.particles import ParticleFilter
from diffusionlm.pipelines.steering import Steering
from diffusionlm.recipe.posterior import pin_logits
from diffusionlm.recipe.refine import blockwise_icm, parallel_icm


class Pipeline(BasePipeline[DiffusionLM]):
    """Writes texts with a diffusion model, its tokenizer, and defaults for the sampling."""

    @staticmethod
    def load_model(folder: Path) -> DiffusionLM:
        """Read a diffusion model."""
        return DiffusionLM.load(folder)

    @cached_property
    def binding(self) -> Binding:
        """What controls are bound to: it keeps classifiers that were read, and says who annotates finished texts."""
        return Binding(self.model, self.tokenizer, self.folder, annotator_for(self.folder))

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
        if sampling.sweeps and not (settings.prediction == "logits" and settings.explicit_length):
            raise UserError("sweeps: needs a model that predicts logits and is told the length; set it to 0")
        if sampling.passes > 1 and not settings.self_conditioning:
            raise UserError("passes: this model is not told its last estimate (no self-conditioning); set it to 1")
        if sampling.length is not None:
            if not settings.explicit_length:
                raise UserError("length: this model writes its own length (it models PAD); leave it empty")
            check_length(sampling.length, longest)

    def lengths(self, seeds: Sequence[Sequence[int]], sampling: SamplingConfig, steering: Steering | None = None) -> list[int]:
        """Return tokens a text, start and end counted: given, drawn from the training texts', or the model's width."""
        config = self.model.config
        if not self.model.settings.explicit_length:
            return [config.max_tokens] * len(seeds)
        if steering is None or sampling.length is not None:
            return draw_lengths(config.length_counts, seeds, sampling.length)
        return draw_lengths(steering.length_prior, seeds, None)

    def stream(
        self,
        count: int,
        sampling: SamplingConfig | None = None,
        watch: Watch | None = None,
        controls: Sequence[str | Control] = (),
        tries: int = 1,
    ) -> Iterator[Generated]:
        """Yield ``count`` texts in order, each as soon as it is known, which are what ``controls`` ask.

        ``tries`` is the most texts that are written for each until one passes every check; the last is kept if none does.

        Raises:
            UserError: a setting that does not go with the model; a control that is impossible, before any work is done.
        """
        sampling = self.sampling if sampling is None else sampling
        if tries < 1:
            raise UserError(f"tries: expected at least 1, got {tries}")
        if not controls:
            yield from super().stream(count, sampling, watch)
            return
        self.check(sampling)
        steering = self.steering(read_controls(controls), sampling)
        for first in range(0, count, sampling.batch_size):
            rows: dict[int, Controlled] = {}
            pending = list(range(first, min(first + sampling.batch_size, count)))
            for tried in range(tries):
                for row in self._controlled(pending, tried, sampling, steering, watch):
                    rows[row.index] = row
                pending = [i for i in pending if not all(outcome.passed for outcome in rows[i].controls)]
                if not pending:
                    break
            yield from (rows[index] for index in sorted(rows))

    def steering(self, controls: Sequence[Control], sampling: SamplingConfig) -> Steering:
        """Bind ``controls`` to the model. Raises UserError where what they ask is impossible."""
        return Steering.of(controls, self.binding, sampling.guidance, sampling.particles, sampling.length)

    def _controlled(
        self, indices: Sequence[int], tried: int, sampling: SamplingConfig, steering: Steering, watch: Watch | None
    ) -> list[Controlled]:
        """Write a text for each index, the ``tried``-th time; of several candidates those that pass have precedence."""
        again = (tried,) if tried else ()
        seeds = [(sampling.seed, index, c, *again) for index in indices for c in range(sampling.candidates)]
        # Particles are texts too: as many are worked on together as the batch allows.
        room = max(1, sampling.batch_size // steering.copies)
        parts = [self.sample_ids(seeds[i : i + room], sampling, watch, steering) for i in range(0, len(seeds), room)]
        ids = [row for part in parts for row in part]
        texts = decode_texts(self.tokenizer, ids)
        found = outcomes(steering.controls, texts, steering.binding)
        chosen = []
        for position, index in enumerate(indices):
            group = range(position * sampling.candidates, (position + 1) * sampling.candidates)
            passing = [row for row in group if all(outcome.passed for outcome in found[row])] or list(group)
            row = passing[minimum_bayes_risk([texts[i] for i in passing])]
            chosen.append(Controlled(texts[row], index, sampling.seed, len(ids[row]), found[row], tried + 1))
        return chosen

    def __call__(
        self, count: int, controls: Sequence[str | Control] | str | Control = (), tries: int = 1, **changes: Any
    ) -> list[Generated]:
        """Write ``count`` texts that are what ``controls`` ask; ``changes`` are fields of ``SamplingConfig``.

        Raises:
            UserError: as ``stream``; there is no such field, or its value is wrong.
        """
        return list(self.stream(count, self.changed(changes), None, read_controls(controls), tries))

    @torch.no_grad()
    def sample_ids(
        self,
        seeds: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        watch: Watch | None,
        steering: Steering | None = None,
    ) -> list[list[int]]:
        """Run the sampler from noise, and round."""
        lengths = self.lengths(seeds, sampling, steering)
        copies = steering.copies if steering else 1
        given_words = None
        if steering is not None:
            given_words, sampling = self._given(seeds, lengths, sampling, steering)
            given_words = given_words.repeat_interleave(copies, 0)
        lengths = [n for n in lengths for _ in range(copies)]
        mask = text_mask(lengths, self.model.device)
        noise = RowNoise([[*seed, 0, *([p] if p else [])] for seed in seeds for p in range(copies)], lengths)
        denoise = WordDenoiser(self.model, mask, sampling, steering, given_words, self.dtype)
        particle_filter = (
            ParticleFilter(sampling.particles, [generator_of([*seed, 2]) for seed in seeds]) if copies > 1 else None
        )

        def rows(words: Tensor) -> list[list[int]]:
            return [self._content(row[:n].tolist()) for row, n in zip(words, lengths, strict=True)]

        def select(state: State) -> Tensor | None:
            assert particle_filter is not None and steering is not None
            last = state.step == sampling.steps
            if not last and state.step % sampling.particles.every:
                return None
            particle_filter.weigh(
                steering.rewards(decode_texts(self.tokenizer, rows(self._words(state, mask, False, steering))))
            )
            kept = None if last else particle_filter.resample()
            return None if kept is None else denoise.select(kept)

        for state in self._states(denoise, noise, select if particle_filter else None):
            last = state.step == sampling.steps
            if watch is not None or last:
                words = self._words(state, mask, last, steering)
            if watch is not None:
                watch(state, decode_texts(self.tokenizer, rows(words)))
        if sampling.sweeps:
            words = self._corrected(words, mask, sampling, noise, steering, given_words)
            if watch is not None:
                watch(state, decode_texts(self.tokenizer, rows(words)))
        written = rows(words)
        if particle_filter is None or steering is None:
            return written
        if sampling.sweeps:  # which know of no reward
            particle_filter.weigh(steering.rewards(decode_texts(self.tokenizer, written)))
        return [written[row] for row in particle_filter.chosen()]

    def _given(
        self, seeds: Sequence[Sequence[int]], lengths: Sequence[int], sampling: SamplingConfig, steering: Steering
    ) -> tuple[Tensor, SamplingConfig]:
        """Return the words (B, L) that texts are written around, -1 elsewhere, and the sampling that is left to do so.

        Given are words that leave no choice, and those that carry what is asked in a draft, where there is to be one.
        """
        mask, settings = text_mask(lengths, self.model.device), self.model.settings
        words, steps = steering.given_words(mask), round(sampling.guidance.draft * sampling.steps)
        able = settings.explicit_length and settings.prediction == "logits"
        if steering.energy is None or not able or not 0 < steps < sampling.steps:
            return words, sampling
        noise = RowNoise([[*seed, 3] for seed in seeds], lengths)
        draft = WordDenoiser(self.model, mask, replace(sampling, steps=steps), steering, words, self.dtype)
        for state in self._states(draft, noise):
            written = state
        drafted = self._words(written, mask, True, steering)
        kept = steering.salient_tokens(drafted, blank(self.model, mask, words), mask & ~draft.known, mask, draft.E)
        return torch.where(kept, drafted, words), replace(sampling, steps=sampling.steps - steps)

    def _states(
        self, denoise: WordDenoiser, noise: RowNoise, select: Callable[[State], Tensor | None] | None = None
    ) -> Iterator[State]:
        """Run the sampler from ``noise``."""
        mask, sampling, steering = denoise.mask, denoise.sampling, denoise.steering
        x = noise(torch.zeros(*mask.shape, self.model.settings.dimension, device=mask.device))
        return sample(
            denoise.wrapped(), self.model.process, x, sampler=sampling.sampler, steps=sampling.steps, noise=noise,
            steer=denoise.move if steering and steering.energy else None, select=select,
        )  # fmt: skip

    def _corrected(
        self,
        words: Tensor,
        mask: Tensor,
        sampling: SamplingConfig,
        noise: RowNoise,
        steering: Steering | None,
        given_words: Tensor | None,
    ) -> Tensor:
        """Ask again for each word, all the others clean: from pure noise, or at once where its own vector is not read."""
        known, boundary = boundaries(mask, self.model.config.special_ids)
        plain = replace(sampling, passes=1, temperature=1.0, step_temperature=None, clamp=False)
        fixed = known | ~mask
        words = torch.where(fixed, boundary, words)
        if given_words is not None:
            fixed = fixed | (given_words >= 0)
        clean = torch.zeros(len(words), device=mask.device)
        denoiser = WordDenoiser(self.model, mask, plain, dtype=self.dtype)
        allowed = partial(steering.allowed, mask=mask) if steering and steering.automaton else None
        if self.model.settings.backbone.excludes_self:

            def cloze(words: Tensor) -> Tensor:
                x0 = self.model.encode(words)
                logits = denoiser.asked(x0, clean, None, torch.zeros_like(mask)).logits + denoiser.barred
                return logits if steering is None else steering.prefer(logits, words, x0, clean, mask, denoiser.E)

            rounds, odds = sampling.sweeps, sampling.sweep_odds
            return parallel_icm(words, ~fixed, cloze, rounds=rounds, odds=odds, allowed=allowed)

        def posterior(words: Tensor, hidden: Tensor) -> Tensor:
            x0 = self.model.encode(words)
            denoiser.previous = None  # each group of words is asked for anew
            denoised = given(denoiser.wrapped(), ~hidden, x0)(noise(x0), torch.ones_like(clean))
            if steering is None:
                return denoised.logits
            sure = replace(denoised, logits=pin_logits(denoised.logits, ~hidden, words))
            belief = GuidanceState.from_logits(sure.logits, x0, clean, mask, denoiser.E) if steering.energy else None
            return steering.believe(sure, mask, denoiser.E, belief).logits

        return blockwise_icm(words, ~fixed, posterior, sweeps=sampling.sweeps, odds=sampling.sweep_odds, allowed=allowed)

    def _words(self, state: State, mask: Tensor, last: bool, steering: Steering | None) -> Tensor:
        """Round: the logits where the model gives them, else the final vectors (Diffusion-LM rounds x_0 itself)."""
        predicted = self.model.settings.prediction == "logits" or not last
        if predicted:
            logits = state.denoised.logits
            return logits.argmax(-1) if steering is None else steering.words(logits, mask)
        logits = self.model.decode(state.x)
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
