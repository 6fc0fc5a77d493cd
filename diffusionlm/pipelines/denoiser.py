"""A diffusion model as a denoiser of texts: self-conditioned, special tokens barred, ends and what is asked built in."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from diffusionlm.core.guidance import Energy, GuidanceState
from diffusionlm.core.process import Gaussian, alpha, over_coordinates, sigma
from diffusionlm.core.sampler import Denoise, Denoised, clamp, given
from diffusionlm.data.batches import boundaries
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.steering import Steering
from diffusionlm.recipe.posterior import apply_temperature, pin_logits


class WordDenoiser:
    """The model as a denoiser of texts of ``mask`` (B, L): self-conditioned, special tokens barred, boundaries and what is
    asked built in.
    """

    def __init__(
        self,
        model: DiffusionLM,
        mask: Tensor,
        sampling: SamplingConfig,
        steering: Steering | None = None,
        words: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Start with no estimate; ``words`` (B, L) are ids that are given, -1 elsewhere; ``dtype`` is the network's alone."""
        self.model, self.mask, self.sampling, self.steering, self.dtype = model, mask, sampling, steering, dtype
        self.E = model.word_vectors()
        self.previous: Tensor | None = None
        self.explicit = model.settings.explicit_length
        self.barred = torch.zeros(len(self.E), device=mask.device)
        if self.explicit:
            self.barred[list(model.config.special_ids.values())] = -math.inf
        self.attend = mask if self.explicit and not bool(mask.all()) else None
        if self.explicit:
            self.known, self.ids = boundaries(mask, model.config.special_ids, words)
        self.followed: Energy | None = None
        if steering is not None:
            free = self.barred.expand(*mask.shape, -1)
            self.followed = steering.followed(mask, pin_logits(free, self.known, self.ids) if self.explicit else free)

    def wrapped(self) -> Denoise:
        """Return it with clamping, and the words that are known held clean."""
        denoise: Denoise = clamp(self, self.E) if self.sampling.clamp else self
        return given(denoise, self.known | ~self.mask, self.model.encode(self.ids)) if self.explicit else denoise

    def __call__(self, xt: Tensor, t: Tensor) -> Denoised:
        """Denoise ``passes`` times, each told the estimate before it; energies act on the last.

        The first is told what the last step's energies led to, so that asking classifiers there as well is hardly worth it.
        """
        steering, temperature, told_apart = self.steering, self.sampling.temperature, self.sampling.step_temperature
        words = self.model.settings.prediction == "logits"
        for turn in range(self.sampling.passes):
            last = turn == self.sampling.passes - 1
            belief, shift = None, None
            if self.followed is not None and last:
                denoised, belief, shift = self._shifted(xt, t)
            else:
                denoised = self._believed(xt, t)
            if steering is not None and words:
                if steering.energy is not None and last and belief is None:
                    belief = GuidanceState.from_logits(denoised.logits, xt, text_times(t), self.mask, self.E)
                denoised = steering.believe(denoised, self.mask, self.E, belief)
            told = apply_temperature(denoised, self.E, temperature) if words else denoised
            told = told if shift is None else replace(told, x0=told.x0 + shift)
            self.previous = told.x0
        if not told_apart:
            return told
        step = apply_temperature(denoised, self.E, told_apart)
        return step if shift is None else replace(step, x0=step.x0 + shift)

    def asked(self, xt: Tensor, t: Tensor, previous: Tensor | None, evidence_mask: Tensor | None = None) -> Denoised:
        """Ask the model, as its ``forward`` says, in the arithmetic of the network; all around it is in fp32."""
        with torch.autocast(xt.device.type, self.dtype, enabled=self.dtype != torch.float32):
            denoised: Denoised = self.model(xt, t, self.attend, previous, evidence_mask)
        return denoised

    def _believed(self, xt: Tensor, t: Tensor) -> Denoised:
        denoised = self.asked(xt, t, self.previous)
        logits = denoised.logits + self.barred
        if self.steering is not None and self.steering.tilts and self.explicit:
            logits = pin_logits(logits, self.known, self.ids)
        return replace(denoised, logits=logits)

    def _shifted(self, xt: Tensor, t: Tensor) -> tuple[Denoised, GuidanceState, Tensor]:
        """Denoise with a graph, and return also what energies are asked about, and how far they move the clean vectors."""
        assert self.followed is not None
        gamma = self.model.process.schedule.gamma(t)
        tweedie = over_coordinates(sigma(gamma) ** 2 / alpha(gamma).clamp(min=1e-3), xt)
        with torch.enable_grad():
            xt = xt.detach().requires_grad_()
            denoised = self._believed(xt, t)
            if self.model.settings.prediction == "logits":
                belief = GuidanceState.from_logits(denoised.logits, xt, text_times(t), self.mask, self.E)
            else:
                belief = GuidanceState(xt, text_times(t), self.mask, lambda: denoised)
            (slope,) = torch.autograd.grad(-self.followed(belief).sum(), xt, retain_graph=True)  # the tilt goes on from there
        return replace(denoised, x0=denoised.x0.detach(), logits=denoised.logits.detach()), belief, tweedie * slope

    def move(self, x: Tensor, s: Tensor, step: Gaussian) -> Tensor:
        """Let the guidance move x_s."""
        assert self.steering is not None and self.steering.energy is not None

        def believe(moved: Tensor) -> GuidanceState:
            return GuidanceState(moved, s, self.mask, lambda: self.asked(moved, s, self.previous))

        return self.steering.guidance.move(self.steering.energy, x, s, step, believe)

    def select(self, rows: Tensor) -> Tensor:
        """Go on with the texts ``rows`` (B,) in place of all; return them."""
        self.previous = None if self.previous is None else self.previous[rows]
        return rows


def text_times(t: Tensor) -> Tensor:
    """Return the time (B,) of texts whose words have times ``t`` (B,) or (B, L): that of the noisiest."""
    return t if t.dim() == 1 else t.amax(-1)
