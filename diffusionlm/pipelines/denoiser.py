"""The denoiser of the sampling loop.

    Predictor        the model for a batch: attention mask, condition, arithmetic type, special tokens
    WordDenoiser     Predictor -> self-conditioning passes -> controls -> temperature -> given tokens held clean

Shapes: B batch, L positions, D latent dimension, V words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from diffusionlm.core.guidance import GuidanceState
from diffusionlm.core.process import Gaussian, Process, over_coordinates
from diffusionlm.core.sampler import Denoise, Denoised, History, Noise, Sampler, State, clamp, given, sample
from diffusionlm.core.schedule import NoiseSchedule
from diffusionlm.data.batches import boundaries
from diffusionlm.models.conditions import Conditioning
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.student import Toward
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.conditioning import guided, guided_logits
from diffusionlm.pipelines.joint import draw_tokens
from diffusionlm.pipelines.steering import Steering
from diffusionlm.recipe.posterior import apply_temperature, pin_logits, posterior_state
from diffusionlm.recipe.schedules import shifted, times_at


@dataclass(frozen=True)
class Predictor:
    """A model with all that is fixed for a batch of samples.

    Args:
        model: the model.
        mask: (B, L), True at non-padding tokens.
        dtype: of the network's arithmetic; everything else is computed in fp32.
        condition: what the network receives of the model's condition; None is the null condition.
        cfg: scale of classifier-free guidance on the condition, 1 is none; likewise ``self_cfg`` on the previous estimate.
        cfg_floor: that of ``guided_logits``, for the guidance on the condition.
        barred: ids of tokens that are never predicted; None is all special tokens. Without effect where PAD is modelled.
        inner: (B, 2), where the begin or the end of a row is inside a text, see ``data.pieces``; None is nowhere.
    """

    model: DiffusionLM
    mask: Tensor
    dtype: torch.dtype = torch.float32
    condition: Conditioning | None = None
    barred: tuple[int, ...] | None = None
    cfg: float = 1.0
    self_cfg: float = 1.0
    cfg_floor: float = 0.1
    inner: Tensor | None = None

    @cached_property
    def embedding(self) -> Tensor:
        """The word vectors E (V, D)."""
        return self.model.word_vectors()

    @cached_property
    def bar(self) -> Tensor:
        """What is added to logits (V,): -inf at barred tokens, else 0."""
        bar = torch.zeros(len(self.embedding), device=self.mask.device)
        if self.model.explicit_length:
            special = [*filter(self.model.barred, self.model.config.special_ids.values())]
            bar[special if self.barred is None else list(self.barred)] = -math.inf
        return bar

    @cached_property
    def attention_mask(self) -> Tensor | None:
        """The mask where there is padding to hide, else None."""
        return None if bool(self.mask.all()) else self.mask

    def __call__(self, xt: Tensor, t: Tensor, previous: Tensor | None = None, toward: Tensor | None = None) -> Denoised:
        """Return the model's prediction; ``previous`` (B, L, D) is the estimate for self-conditioning.

        ``toward`` (B,) are the times that a step leads to, for distilled models.
        """

        def predict(previous: Tensor | None, condition: Conditioning | None) -> Denoised:
            given = condition if toward is None else Toward(self.model.process.schedule.gamma(ends(toward, t)), condition)
            denoised: Denoised = self.model(xt, t, self.attention_mask, previous, None, given)
            return denoised

        with torch.autocast(xt.device.type, self.dtype, enabled=self.dtype != torch.float32):
            denoised = predict(previous, self.condition)
            if previous is not None and self.self_cfg != 1:
                denoised = self._moved(predict(None, self.condition), denoised, self.self_cfg)
            if self.condition is not None and self.cfg != 1:
                denoised = self._moved(
                    predict(previous, None), denoised, self.cfg, partial(guided_logits, floor=self.cfg_floor)
                )
        return denoised

    def _moved(self, start: Denoised, end: Denoised, scale: float, move: Callable[..., Tensor] = guided) -> Denoised:
        if self.model.has_logits:
            logits = move(start.logits, end.logits, scale)
            return replace(end, logits=logits, x0=logits.softmax(-1) @ self.embedding)
        x0 = guided(start.x0, end.x0, scale)
        return replace(end, x0=x0, logits=self.model.decode(x0))

    def infill(self, ids: Tensor, known: Tensor, noise: Tensor | float = 0.0, evidence_mask: Tensor | None = None) -> Tensor:
        """Return token logits (B, L, V) where the ``ids`` (B, L) that are ``known`` are clean and all others pure ``noise``.

        Noise 0 is the mode of the prior. ``evidence_mask`` is as in ``DenoisingModel.forward``; needs a model with logits.
        """
        xt = torch.where(known[..., None], self.model.process.rescale(self.model.encode(ids), 0.0), noise)
        with torch.autocast(xt.device.type, self.dtype, enabled=self.dtype != torch.float32):
            given = (xt, (~known).float(), self.attention_mask, None, evidence_mask)
            logits = self.model.token_logits(*given, self.condition).float()
            if self.condition is not None and self.cfg != 1:
                logits = guided_logits(self.model.token_logits(*given, None), logits, self.cfg, self.cfg_floor)
        return logits + self.bar

    def boundaries(self, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the given positions (B, L) and ids (B, L): the ends of each row, and ``tokens`` (B, L) that are not -1."""
        return boundaries(self.mask, self.model.config.special_ids, tokens, self.inner)

    def rows(self, tokens: Tensor) -> list[list[int]]:
        """Return the ids of each row of ``tokens`` (B, L) without BOS, EOS and padding."""
        rows = list(zip(tokens.tolist(), self.mask.sum(1).tolist(), strict=True))
        if self.model.explicit_length:
            return [row[1 : n - 1] for row, n in rows]
        return [until_end(row[:n], self.model.config.special_ids) for row, n in rows]


class WordDenoiser:
    """The denoiser of a sampling loop; it keeps the last estimate of x_0, for self-conditioning.

    A sampler may evaluate it several times in a step: each evaluation receives the estimate of the one before.
    """

    def __init__(self, predict: Predictor, sampling: SamplingConfig, steering: Steering, tokens: Tensor | None = None) -> None:
        """Start without an estimate; ``tokens`` (B, L) are given ids, -1 elsewhere."""
        self.predict, self.sampling, self.steering = predict, sampling, steering
        self.model, self.mask, self.embedding = predict.model, predict.mask, predict.embedding
        self.previous: Tensor | None = None
        self.shift: Tensor | None = None  # of x_0 by the last gradient
        self.calls = 0
        self.noise: Noise = torch.randn_like
        self.toward: Tensor | None = None  # the time of the next step, which distilled models read
        if self.model.explicit_length:
            self.known, self.ids = predict.boundaries(tokens)
        constraint = None
        if steering.automaton is not None:
            constraint = steering.constraint(
                self.mask, pin_logits(predict.bar.expand(*self.mask.shape, -1), self.known, self.ids)
            )
        self.energy = steering.guidance.denoiser_energy(steering.energy, constraint) if steering.active else None

    def states(
        self, noise: Noise, select: Callable[[State], Tensor | None] | None = None, start: tuple[Tensor, float] | None = None
    ) -> Iterator[State]:
        """Run the sampler from ``noise``, or from tokens (B, L) that are noised to a level; ``select`` as in ``sample``."""

        def selected(state: State) -> Tensor | None:
            rows = None if select is None else select(state)
            self.previous = self.previous if rows is None or self.previous is None else self.previous[rows]
            self.shift = self.shift if rows is None or self.shift is None else self.shift[rows]
            return rows

        self.noise, self.calls, self.shift = noise, 0, None
        pure = noise(self.embedding.new_zeros(*self.mask.shape, self.embedding.shape[1]))
        if start is None:
            x, level = self.model.process.rescale(pure, 1.0), 1.0
        else:
            (tokens, level), process = start, self.model.process
            times = torch.full((len(pure),), level, dtype=torch.float64, device=pure.device)
            x = process.noise(self.model.encode(tokens), times, pure).to(pure)
        sampler = self.sampling.sampler
        if self.model.settings.distilled_for or self.model.joint is not None:
            sampler = Aimed(sampler, self)
        if self.sampling.noise_shift:
            sampler = Shifted(sampler, self)
        return sample(
            self.wrapped(), self.model.process, x, sampler=sampler, steps=self.sampling.steps, noise=noise,
            level=level, steer=None if self.steering.energy is None else self._move, select=selected,
        )  # fmt: skip

    def tokens(self, state: State, final: bool = False) -> Tensor:
        """Return the most probable tokens (B, L) that satisfy the constraints.

        ``final`` vectors of a model without logits are rounded as they are (Diffusion-LM, section 4.2), not predicted again.
        """
        rounded = final and not self.model.has_logits
        logits = self.model.decode(state.x) + self.predict.bar if rounded else state.denoised.logits
        return self.steering.decode(logits, self.mask)

    def wrapped(self) -> Denoise:
        """Return the denoiser with clamping, and given tokens held at their clean vectors."""
        denoise: Denoise = clamp(self, self.embedding) if self.sampling.clamp else self
        if not self.model.explicit_length:
            return denoise
        clean = self.model.process.rescale(self.model.encode(self.ids), 0.0)
        return given(denoise, self.known | ~self.mask, clean)

    def __call__(self, xt: Tensor, t: Tensor) -> Denoised:
        """Denoise in ``passes`` self-conditioning passes; gradients act on the last one."""
        self.calls += 1
        for _ in range(self.sampling.passes - 1):
            prediction = self._prediction(xt, t)
            if self.model.has_logits:
                prediction = replace(prediction, logits=self.steering.constrain(prediction.logits, self.mask))
            self.previous = self._posterior_mean(prediction, self.sampling.temperature, None).x0
        prediction, shift = self._guided(xt, t)
        if self.model.joint is not None:
            drawn = self._drawn(prediction, shift)
            self.previous = drawn.x0
            return drawn
        estimate = self._posterior_mean(prediction, self.sampling.temperature, shift)
        self.previous = estimate.x0
        if self.sampling.step_temperature is None:
            return estimate
        return self._posterior_mean(prediction, self.sampling.step_temperature, shift)

    def _prediction(self, xt: Tensor, t: Tensor) -> Denoised:
        """Return the model's prediction without barred tokens; with controls, given tokens have probability 1."""
        denoised = self.predict(xt, t, self.previous, self.toward)
        logits = denoised.logits + self.predict.bar
        if (self.steering.active or self.model.joint is not None) and self.model.explicit_length:
            logits = pin_logits(logits, self.known, self.ids)
        return replace(denoised, logits=logits)

    def _guided(self, xt: Tensor, t: Tensor) -> tuple[Denoised, Tensor | None]:
        """Return the prediction with its logits guided and constrained, and the shift (B, L, D) of x_0, if any."""
        steering, state = self.steering, None
        every = steering.guidance.constraint_every if steering.energy is None else 1
        if self.energy is not None and (self.calls - 1) % every == 0 and not self._ends():
            prediction, state, self.shift = self._shifted(xt, t)
        else:
            prediction = self._prediction(xt, t)
        shift = self.shift
        if not self.model.has_logits:
            return prediction, shift
        logits = prediction.logits
        if steering.energy is not None:
            state = state or posterior_state(logits, xt, text_times(t), self.mask, self.embedding)
            logits = steering.guidance.guide_logits(steering.energy, logits, state, self.embedding)
        if self.model.joint is not None:  # draws from the joint distribution are constrained themselves
            return replace(prediction, logits=logits), shift
        return replace(prediction, logits=steering.constrain(logits, self.mask)), shift

    def _ends(self) -> bool:
        """Return whether this evaluation is the last one, of which only the logits are used: nothing comes after x_0."""
        one_a_step = type(self.sampling.sampler).step is Sampler.step
        return self.model.has_logits and one_a_step and self.calls == self.sampling.steps

    def _shifted(self, xt: Tensor, t: Tensor) -> tuple[Denoised, GuidanceState, Tensor]:
        """Return the prediction, its guidance state with the graph, and the shift sigma^2 / alpha times the gradient."""
        assert self.energy is not None
        process = self.model.process
        a, s = process.alpha_sigma(process.schedule.gamma(t))
        with torch.enable_grad():
            xt = xt.detach().requires_grad_()
            denoised = self._prediction(xt, t)
            if self.model.has_logits:
                state = posterior_state(denoised.logits, xt, text_times(t), self.mask, self.embedding)
            else:
                state = GuidanceState(xt, text_times(t), self.mask, lambda: denoised)
            (slope,) = torch.autograd.grad(-self.energy(state).sum(), xt, retain_graph=True)  # the state is used again
        shift = over_coordinates(s**2 / a.clamp(min=1e-3), xt) * slope
        return replace(denoised, x0=denoised.x0.detach(), logits=denoised.logits.detach()), state, shift

    def _drawn(self, prediction: Denoised, shift: Tensor | None) -> Denoised:
        """Return draws from the joint distribution of the prediction, as logits and as vectors moved by ``shift``."""
        model, logits = self.model, prediction.logits
        assert model.joint is not None
        count = 1 if self.steering.energy is None else self.steering.guidance.draws
        tokens = self.steering.chosen([self._draw(logits) for _ in range(count)], self.mask, self.embedding, self._normal)
        x0, everywhere = model.encode(tokens), torch.ones_like(self.mask)
        return replace(prediction, x0=x0 if shift is None else x0 + shift, logits=pin_logits(logits, everywhere, tokens))

    def _draw(self, logits: Tensor) -> Tensor:
        assert self.model.joint is not None
        ahead, dtype = self.steering.lookahead(logits, self.mask), self.predict.dtype
        with torch.autocast(logits.device.type, dtype, enabled=dtype != torch.float32):
            return draw_tokens(
                self.model.joint, self.embedding, logits, self.mask, self.sampling.temperature, self._normal(), ahead
            )  # fmt: skip

    def _normal(self) -> Tensor:
        """Draw standard normal values (B, L)."""
        return self.noise(torch.zeros(*self.mask.shape, 1, device=self.mask.device))[..., 0]

    def _posterior_mean(self, prediction: Denoised, temperature: float, shift: Tensor | None) -> Denoised:
        """Return the prediction at ``temperature``, with x_0 moved by ``shift``."""
        if self.model.has_logits:
            prediction = apply_temperature(prediction, self.embedding, temperature)
        return prediction if shift is None else replace(prediction, x0=prediction.x0 + shift)

    def _move(self, x: Tensor, s: Tensor, step: Gaussian) -> Tensor:
        """Return x_s, which was drawn from ``step``, as the guidance moves it."""
        assert self.steering.energy is not None

        def predict(moved: Tensor) -> GuidanceState:
            return GuidanceState(moved, s, self.mask, lambda: self.predict(moved, s, self.previous))

        return self.steering.guidance.guide_latents(self.steering.energy, x, s, step, predict)


@dataclass(frozen=True)
class Aimed(Sampler):
    """A sampler that takes a distilled model's steps, equal shares of a run, and passes on to the denoiser where each leads."""

    sampler: Sampler
    denoiser: WordDenoiser

    def times(self, schedule: NoiseSchedule, steps: int) -> Tensor:
        return times_at(schedule, torch.linspace(1, 0, steps + 1, dtype=torch.float64))

    def step(
        self, denoise: Denoise, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> tuple[Denoised, Gaussian]:
        self.denoiser.toward = s
        return self.sampler.step(denoise, process, history, xt, t, s, noise)


@dataclass(frozen=True)
class Shifted(Sampler):
    """A sampler with its steps at other noise levels, see ``recipe.schedules.shifted``."""

    sampler: Sampler
    denoiser: WordDenoiser

    def times(self, schedule: NoiseSchedule, steps: int) -> Tensor:
        return shifted(self.sampler.times(schedule, steps), schedule, self.denoiser.sampling.noise_shift)

    def step(
        self, denoise: Denoise, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> tuple[Denoised, Gaussian]:
        return self.sampler.step(denoise, process, history, xt, t, s, noise)


def ends(s: Tensor, t: Tensor) -> Tensor:
    """Return the times that a step to ``s`` (B,) leads to from ``t``, (B,) or (B, L): tokens that are less noisy stay."""
    return s if t.dim() == 1 else torch.minimum(s[:, None].to(t), t)


def text_times(t: Tensor) -> Tensor:
    """Return the time (B,) of each sample: that of its noisiest token, where ``t`` is (B, L)."""
    return t if t.dim() == 1 else t.amax(-1)


def until_end(ids: list[int], special: dict[str, int]) -> list[int]:
    """Return the ``ids`` before the first EOS, without BOS and PAD."""
    ids = ids[: ids.index(special["end"])] if special["end"] in ids else ids
    return [i for i in ids if i not in (special["start"], special["pad"])]
