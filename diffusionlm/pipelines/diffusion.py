"""Sampling from a diffusion model. The path of a controlled sample, from top to bottom:

1  compile the controls        compile.compile_controls      controls -> automaton, energy, rewards
2  length prior                lengths.length_prior          -> weights of the lengths, of which each sample draws one
3  draft, salient tokens       draft.draft_pass              -> given tokens (B, L)
4  sampling loop               denoiser.WordDenoiser         noise -> states; constraints and gradients wrap the denoiser
5  constrained decoding        WordDenoiser.tokens           state -> tokens (B, L), by Viterbi
6  refinement sweeps           sweeps.refine                 tokens -> tokens that the automaton still accepts
7  particles                   particles.ParticleFilter      resampled in the loop by their rewards; one is drawn at the end
8  checks                      controls.outcomes             texts -> passed and score of each control
9  ranking                     ranking.best_candidates       candidates that pass, then the best of them

Samples that fail their checks go through 3 to 9 again with another seed, as often as ``tries`` allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from diffusionlm.config import UserError, plain_name
from diffusionlm.controls import Binding, Control, outcomes, read_controls
from diffusionlm.controls.binding import annotator_for
from diffusionlm.core.sampler import State
from diffusionlm.data.annotators import Annotator
from diffusionlm.data.batches import text_mask
from diffusionlm.models.conditions import Conditioning
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.pieces import context_of
from diffusionlm.pipelines.base import (
    BasePipeline,
    Controls,
    SamplingConfig,
    Watch,
    batches,
    check_count,
    check_length,
)
from diffusionlm.pipelines.budget import spent_on
from diffusionlm.pipelines.compile import compile_controls, why_impossible
from diffusionlm.pipelines.conditioning import (
    Requested,
    at_length,
    conditioning,
    edited,
    expected_counts,
    fixed_tokens,
    listed,
    repeated,
    requested,
    room_of,
    say_once,
)
from diffusionlm.pipelines.denoiser import Predictor, WordDenoiser
from diffusionlm.pipelines.draft import draft_pass, draft_steps
from diffusionlm.pipelines.effect import Unused, unused_in_diffusion
from diffusionlm.pipelines.lengths import draw_lengths, fixed_length, length_prior
from diffusionlm.pipelines.memory import samples_at_once
from diffusionlm.pipelines.noise import RowNoise, generator_of
from diffusionlm.pipelines.particles import ParticleFilter
from diffusionlm.pipelines.pieces import (
    Piece,
    begun_ids,
    check_single,
    check_tokens,
    fill_given,
    inner_borders,
    sample_in_pieces,
    seeds_of,
    text_prior,
)
from diffusionlm.pipelines.ranking import best_candidates, passes
from diffusionlm.pipelines.request import Request, from_level
from diffusionlm.pipelines.rows import Controlled, Generated, decoded, restored
from diffusionlm.pipelines.steering import Steering, determined_tokens
from diffusionlm.pipelines.sweeps import refine
from diffusionlm.processes import shared
from diffusionlm.recipe.flow import Flow
from diffusionlm.recipe.heun import Heun
from diffusionlm.recipe.samplers import DPMSolver


class Pipeline(BasePipeline[DiffusionLM]):
    """Samples from a diffusion model, with or without controls."""

    load_model = staticmethod(DiffusionLM.load)
    has_flow = True

    def stream(
        self, count: int = 1, sampling: SamplingConfig | None = None, watch: Watch | None = None,
        controls: Controls = (), tries: int = 1, condition: Any = None, source: str | Sequence[str] | None = None,
        first: int = 0,
    ) -> Iterator[Generated]:  # fmt: skip
        sampling, controls = self.sampling if sampling is None else sampling, read_controls(controls)
        self.check_request(sampling, controls, tries, condition, source)
        conditions = requested(self.model, self.tokenizer, condition, source)
        sampling = at_length(sampling, self.model, conditions)
        check_count(first, "first")
        yield from self.samples(self.request(conditions, count, sampling, watch, controls, tries), tries, first)

    def edit(
        self, text: str | Sequence[str], level: float = 0.5, controls: Controls = (), count: int = 1,
        sampling: SamplingConfig | None = None, watch: Watch | None = None, tries: int = 1, condition: Any = None,
    ) -> Iterator[Generated]:  # fmt: skip
        """Yield ``count`` edits of each ``text``: its vectors are noised to time ``level`` and denoised with ``controls``.

        The number of tokens stays. ``level`` 0 leaves the text, 1 is pure noise; between them it is the share of the sampling
        steps that are left, so that the schedule spreads it evenly (SDEdit, Meng et al. 2022).

        Raises:
            UserError: as ``stream``; a level that is not from 0 to 1; a text that is empty, too long or has unknown words.
        """
        if not (isinstance(level, int | float) and 0 <= level <= 1):
            raise UserError(f"level: expected a number from 0 (the text) to 1 (pure noise), got {level}")
        if not self.model.explicit_length:
            raise UserError("level: edits keep the number of tokens, but this model generates PAD and determines it itself")
        check_single(self.model, "text")
        sampling, controls = self.sampling if sampling is None else sampling, read_controls(controls)
        self.check_request(sampling, controls, tries, condition)
        texts = listed(text, "text")
        (given,) = requested(self.model, self.tokenizer, condition)
        conditions = edited(self.model, self.tokenizer, texts, given)
        request = self.request(conditions, count, sampling, watch, controls, tries, level)
        if (automaton := request.steering.automaton) is not None:
            needed = {len(each.ids or ()) for each in request.conditions}
            if impossible := needed.difference(automaton.lengths(self.model.config.max_tokens - 2)):
                raise UserError(why_impossible(controls, self.binding, min(impossible)))
        yield from self.samples(request, tries)

    def extend(
        self, text: str, count: int = 1, sampling: SamplingConfig | None = None, watch: Watch | None = None, first: int = 0
    ) -> Iterator[Generated]:
        """Yield ``count`` samples that begin with the tokens of ``text``, of a model that was trained with context.

        Texts may be longer than the model's rows, see ``pipelines.pieces``; a ``length`` is that of the sample with ``text``.

        Raises:
            UserError: as ``stream``; a text that is empty, has unknown words, or is not shorter than the samples.
        """
        sampling = self.sampling if sampling is None else sampling
        begun = begun_ids(self.model, self.tokenizer, text, sampling.length)
        self.check_request(sampling, (), 1, None)
        check_count(first, "first")
        yield from self.samples(self.request([Requested()], count, sampling, watch, (), 1, begun=begun), 1, first)

    def request(
        self, conditions: Sequence[Requested], count: int, sampling: SamplingConfig, watch: Watch | None,
        controls: Sequence[Control], tries: int, level: float = 1.0, begun: tuple[int, ...] = (),
    ) -> Request:  # fmt: skip
        """Return a checked request, with its controls compiled."""
        check_count(count)
        self.check(sampling)
        self.check_requested(sampling, conditions)
        if controls and sampling.length is not None:
            check_length(sampling.length, self.model.config.max_tokens - 2)  # automata read single rows
        steering = self.steering(controls, sampling, tries)  # 1
        if level > 0:
            self.say_untrained(sampling.steps, 0 if steering.energy is None else draft_steps(sampling), level)

        @cache
        def priors(number: int) -> list[float]:  # 2
            given = conditions[number]
            if given.ids is not None:
                return fixed_length(len(given.ids) + 2)
            return self.length_prior(sampling, steering, given.value, begun)

        priors(0)  # before any sampling: controls may be impossible
        return Request(sampling, steering, priors, conditions, count, watch, level, begun)

    def say_untrained(self, steps: int, draft: int, level: float) -> None:
        """Say on stderr which steps a distilled model was not trained for: another number, a draft's, or from a ``level``."""
        made = self.model.settings.distilled_for
        if made is None or (steps == made and not draft and level == 1):
            return
        other = f"{steps} step{'s' * (steps != 1)}"
        if level < 1:
            other = f"steps from level {level:g}"
        elif steps == made:
            other = f"a draft of {draft} and {steps - draft} after it (guidance.draft 0 leaves the draft out)"
        untrained = f"it was not trained for {other}, so its samples may be worse"
        say_once(f"steps: this model is distilled for {made} step{'s' * (made != 1)}; {untrained}")

    def samples(self, request: Request, tries: int, first: int = 0) -> Iterator[Generated]:
        """Yield the samples of a request from index ``first`` on in order, each batch as soon as it is finished."""
        sampling = request.sampling

        def sampled(indices: range) -> list[Generated]:
            room = self.samples_at_once(request, indices)
            rows: dict[int, Generated] = {}
            pending = list(indices)
            for attempt in range(tries):
                again = (attempt,) if attempt else ()
                seeds = [(sampling.seed, index, c, *again) for index in pending for c in range(sampling.candidates)]
                parts = (seeds[i : i + room] for i in range(0, len(seeds), room))
                ids = [row for part in parts for row in self.sample_ids(part, request)]  # 3 to 7
                rows |= {row.index: row for row in self.best(ids, pending, attempt, request)}  # 8, 9
                pending = [i for i in pending if not passes(getattr(rows[i], "controls", ()))]
                if not pending:
                    break
            return [rows[index] for index in indices]

        for rows in shared(batches(request.count * len(request.conditions), sampling, first), sampled, restored):
            yield from (row for row in rows if row.index >= first)

    def samples_at_once(self, request: Request, indices: Sequence[int]) -> int:
        """Return how many of the samples ``indices`` are drawn at once; particles count as samples."""
        if request.level == 0:
            return request.sampling.batch_size
        priors = map(request.priors, {index // request.count for index in indices})
        longest = max(n for prior in priors for n, weight in enumerate(prior) if weight or not n)
        longest = min(longest, self.model.config.max_tokens)
        room = samples_at_once(request.sampling.batch_size, longest, self.model, request.steering.active)
        return max(1, room // request.steering.copies)

    @torch.no_grad()
    def sample_ids(self, seeds: Sequence[Sequence[int]], request: Request) -> list[list[int]]:
        """Return the token ids of a sample for each seed, without BOS, EOS and padding."""
        numbers = [seed[1] // request.count for seed in seeds]  # of the conditions
        if request.level == 0:
            return [list(request.conditions[number].ids or ()) for number in numbers]
        sharp = request.sampling.length_temperature
        lengths = [draw_lengths(request.priors(n), [seed], sharp)[0] for n, seed in zip(numbers, seeds, strict=True)]

        def rows(samples: list[int], pieces: list[Piece]) -> list[list[int]]:
            return self.piece_ids([seeds[i] for i in samples], pieces, request)

        return sample_in_pieces(self.model, lengths, request.begun, rows)

    def piece_ids(self, seeds: Sequence[Sequence[int]], pieces: Sequence[Piece], request: Request) -> list[list[int]]:
        """Return the token ids of a piece of the sample of each seed, those that are given included."""
        steering, watch, copies = request.steering, request.watch, request.steering.copies
        numbers, lengths = [seed[1] // request.count for seed in seeds], [piece.tokens for piece in pieces]
        condition = conditioning(self.model, [request.conditions[number].value for number in numbers], self.dtype)
        inner = inner_borders(pieces, self.model.device)
        predict = self.predictor(lengths, condition, sampling=request.sampling, inner=inner)
        given, sampling, start = self.start(predict, seeds, numbers, request)  # 3
        given = fill_given(given, pieces)

        lengths, given = [n for n in lengths for _ in range(copies)], given.repeat_interleave(copies, 0)
        if copies > 1 and condition is not None:
            condition = condition.rows(torch.arange(len(seeds), device=self.model.device).repeat_interleave(copies))
        predict = self.predictor(lengths, condition, sampling=request.sampling, inner=inner)
        noise = RowNoise([[*seed, *([p] if p else [])] for seed in seeds_of(seeds, pieces) for p in range(copies)], lengths)
        denoiser = WordDenoiser(predict, sampling, steering, given)
        particles = ParticleFilter(sampling.particles, [generator_of([*seed, 2]) for seed in seeds])

        def texts(tokens: Tensor) -> list[str]:
            return decoded(self.model, self.tokenizer, predict.rows(tokens))[0]

        def select(state: State) -> Tensor | None:  # 7
            return particles.select(state.step, sampling.steps, lambda: steering.rewards(texts(denoiser.tokens(state))))

        for state in denoiser.states(noise, select if copies > 1 else None, start):  # 4
            if watch is not None and state.step < sampling.steps:
                watch(state, texts(denoiser.tokens(state)))
        tokens = denoiser.tokens(state, final=True)  # 5
        if watch is not None:
            watch(state, texts(tokens))
        if sampling.sweeps:
            tokens = refine(predict, tokens, given, sampling, steering, noise)  # 6
            if watch is not None:
                watch(state, texts(tokens))
        ids = predict.rows(tokens)
        if copies == 1:
            return ids
        if sampling.sweeps:  # sweeps change the tokens that were scored last
            particles.weigh(steering.rewards(texts(tokens)))
        return [ids[row] for row in particles.chosen()]

    def start(
        self, predict: Predictor, seeds: Sequence[Sequence[int]], numbers: Sequence[int], request: Request
    ) -> tuple[Tensor, SamplingConfig, tuple[Tensor, float] | None]:
        """Return the given tokens (B, L), the sampling settings that are left, and where edits start: tokens and a level."""
        if request.level == 1:
            return *draft_pass(predict, seeds, request.sampling, request.steering), None
        tokens = torch.full_like(predict.mask, self.model.config.special_ids["pad"], dtype=torch.long)
        for row, number in enumerate(numbers):
            ids = request.conditions[number].ids or ()
            tokens[row, 1 : 1 + len(ids)] = torch.tensor(ids)
        sampling = from_level(request.sampling, request.level)
        copies = tokens.repeat_interleave(request.steering.copies, 0)
        return determined_tokens(request.steering.automaton, predict.mask), sampling, (copies, request.level)

    def best(self, ids: Sequence[list[int]], indices: Sequence[int], attempt: int, request: Request) -> list[Generated]:
        """Return a sample for each index: the best of its consecutive candidates in ``ids``."""
        sampling, steering = request.sampling, request.steering
        texts, parts = decoded(self.model, self.tokenizer, ids)
        checks = outcomes(steering.controls, texts, steering.binding)  # 8
        given = [request.conditions[index // request.count] for index in indices]
        chosen = best_candidates(self, sampling, indices, given, ids, texts, checks)  # 9
        rows = [
            (Generated(texts[row], index, sampling.seed, len(ids[row]), each.source, parts[row]), checks[row])
            for index, row, each in zip(indices, chosen, given, strict=True)
        ]
        if not steering.controls:
            return [row for row, _ in rows]
        return [Controlled(**vars(row), controls=found, tried=attempt + 1) for row, found in rows]

    def unused(self, sampling: SamplingConfig, controls: Sequence[Control] = ()) -> Unused:
        return unused_in_diffusion(self, sampling, controls)

    def steering(self, controls: Sequence[Control], sampling: SamplingConfig, tries: int = 1) -> Steering:
        """Compile ``controls`` for the model. Raises UserError where they are impossible."""
        if controls:
            check_single(self.model, "control")
        return compile_controls(controls, self.binding, sampling, tries)

    def check_controls(self, controls: Sequence[Control], sampling: SamplingConfig) -> None:
        self.steering(controls, sampling)

    def set_annotator(self, annotator: Annotator) -> None:
        self.binding = replace(self.binding, annotator=annotator)

    def length_prior(
        self, sampling: SamplingConfig, steering: Steering, value: Any = None, begun: Sequence[int] = ()
    ) -> list[float]:
        """Return the weights of the numbers of tokens, BOS and EOS counted, of samples with a ``value`` of the condition."""
        tokens = fixed_tokens(self.model, value) if sampling.length is None else sampling.length
        if tokens is not None and self.model.padded_width is None:
            return fixed_length(tokens + 2)
        if context_of(self.model) and not steering.controls:
            return text_prior(self.model, begun)
        condition = conditioning(self.model, [value], self.dtype)
        if self.model.padded_width is not None:
            return fixed_length(room_of(self.model, condition))

        def predictor(lengths: Sequence[int]) -> Predictor:
            return self.predictor(lengths, repeated(condition, len(lengths)), torch.float32, sampling)

        counts = expected_counts(self.model, condition)
        known = steering.compiled.length_probabilities
        return length_prior(
            self.model, steering.automaton, steering.energy, known, predictor, None if counts is None else counts[0]
        )  # fmt: skip

    def predictor(
        self, lengths: Sequence[int], condition: Conditioning | None = None, dtype: torch.dtype | None = None,
        sampling: SamplingConfig | None = None, inner: Tensor | None = None,
    ) -> Predictor:  # fmt: skip
        """Return the model set up for samples of ``lengths``, BOS and EOS counted; ``inner`` as in ``Predictor``."""
        mask, sampling = text_mask(lengths, self.model.device), sampling or self.sampling
        return Predictor(
            self.model, mask, dtype or self.dtype, condition, cfg=sampling.cfg, self_cfg=sampling.self_cfg,
            cfg_floor=sampling.cfg_floor, inner=inner,
        )  # fmt: skip

    @cached_property
    def binding(self) -> Binding:
        """What controls are compiled for: the model, its classifiers, and the annotator that checks finished texts."""
        return Binding(self.model, self.tokenizer, self.folder, annotator_for(self.folder))

    def spent_on(self, sampling: SamplingConfig, evaluations: int) -> SamplingConfig:
        return spent_on(self.model, sampling, evaluations)

    def preview(self, count: int) -> list[str]:
        few = self.model.settings.distilled_for or (self.sampling.steps if self.model.joint is not None else 32)
        steps = min(few, self.model.settings.schedule.max_steps)
        return [row.text for row in self.stream(count, replace(self.sampling, steps=steps, candidates=1, cfg=1.0))]

    def check(self, sampling: SamplingConfig) -> None:
        model, schedule = self.model, self.model.settings.schedule
        if sampling.steps > schedule.max_steps:
            schedule.sampling_times(sampling.steps)
        if model.joint is not None and isinstance(sampling.sampler, Flow | Heun | DPMSolver):
            name = plain_name(type(sampling.sampler))
            raise UserError(
                f"sampler: {name!r} follows the probability flow, which needs the mean of x_0, but this model draws the tokens "
                "of each step; take ddpm, ddim or renoise"
            )
        if not model.has_logits and (sampling.temperature, sampling.step_temperature or 1) != (1, 1):
            raise UserError(f"temperature: this model predicts {model.prediction}, not logits; leave it at 1")
        if sampling.sweeps and not (model.has_logits and model.explicit_length):
            raise UserError("sweeps: expected 0 for a model without prediction 'logits' and explicit_length")
        if sampling.passes > 1 and not model.self_conditions:
            raise UserError(f"passes: expected 1 for a model without self_conditioning, got {sampling.passes}")
        if sampling.self_cfg != 1 and not model.self_conditions:
            raise UserError(f"self_cfg: expected 1 for a model without self_conditioning, got {sampling.self_cfg}")
        if sampling.length is not None:
            if not model.explicit_length:
                raise UserError("length: this model generates PAD and so determines the length itself; leave it empty")
            check_tokens(model, sampling.length)
