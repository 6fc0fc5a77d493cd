"""Samplers that walk along the score: annealed Langevin dynamics (NCSN) and predictor-corrector (score SDE).

    x <- x + a/2 s(x, t) + sqrt(a) z        z ~ N(0, I)        Langevin dynamics: for small a its limit is p_t

Song and Ermon 2019, algorithm 1, and Song et al. 2021, algorithms 2 to 5. The score s comes from the denoiser
(``recipe.score``), so constraints, guidance and given tokens act as with any sampler. No step evaluates it at t = 0: the last
ends in the predicted x_0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusionlm.core.process import Gaussian, Process, over_coordinates
from diffusionlm.core.sampler import Denoise, Denoised, History, Noise, Sampler
from diffusionlm.recipe.samplers import renoised
from diffusionlm.recipe.score import score


@dataclass(frozen=True)
class AnnealedLangevin(Sampler, name="annealed-langevin"):
    """Langevin dynamics at each noise level of a ladder, from the noisiest down (Song and Ermon 2019, algorithm 1).

        x <- x + a/2 s(x, t) + sqrt(a) z,        a = step_size sigma_t^2

    ``inner_steps`` times at each of the sampling steps' levels; the next level starts from there, x_s = alpha_s / alpha_t x. At
    the end x_0 is predicted, which removes the noise of the lowest level (Jolicoeur-Martineau et al. 2021).

    Args:
        inner_steps: steps at each level, n_steps of NCSN; 100 there, on ten levels.
        step_size: a / sigma^2, the same at all levels: eps / sigma_L^2 of NCSN, where it is 2e-5 / 0.01^2 = 0.2.
    """

    inner_steps: int = 5
    step_size: float = 0.2

    def __post_init__(self) -> None:
        self.expect("1 to 10000", "inner_steps")
        self.expect("a positive number", "step_size")
        self.expect("0 to 2", "step_size")  # a larger one goes beyond the predicted x_0

    def step(
        self, denoise: Denoise, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> tuple[Denoised, Gaussian]:
        alpha, sigma = process.signal_and_noise(xt, t)
        last, x, deviation = not bool((s > 0).all()), xt, self.step_size**0.5 * sigma
        for inner in range(self.inner_steps):
            denoised = denoise(x, t)
            mean = x + self.step_size / 2 * (alpha * denoised.x0 - x)
            if last or inner + 1 < self.inner_steps:  # the noise of a level's last step is drawn by the sampling loop
                x = mean + deviation * noise(x)
        if last:
            denoised = denoise(x, t)
            return denoised, renoised(process, denoised.x0, x, t, s, torch.zeros_like(t))
        ratio = process.signal_and_noise(xt, s)[0] / alpha
        return denoised, Gaussian(ratio * mean, (ratio * deviation) ** 2)


@dataclass(frozen=True)
class PredictorCorrector(Sampler, name="predictor-corrector"):
    """Langevin steps that correct x_t, then a step of the reverse process (Song et al. 2021, section 4.2).

        corrector            x <- x + a s(x, t) + sqrt(2 a) z,    a = 2 (r |z| / |s|)^2 (alpha_t / alpha_s)^2    algorithms 4, 5
        reverse diffusion    x_s = (2 - alpha_t / alpha_s) x + G^2 s(x, t) + G z,    G^2 = var q(x_t | x_s)     equation 46
        ancestral            x_s ~ q(x_s | x_t, x0(x, t))                                                       equation 47

    The norms are those of each text; alpha_t / alpha_s is 1 for the variance-exploding process. As in the released code the
    corrector acts before the predictor; the last predictor is ancestral, so that it ends in the predicted x_0.

    Args:
        predictor: the step from t to s.
        corrections: Langevin steps at each noise level.
        r: signal-to-noise ratio of the corrector.
    """

    predictor: Literal["reverse-diffusion", "ancestral"] = "reverse-diffusion"
    corrections: int = 1
    r: float = 0.16

    def __post_init__(self) -> None:
        self.expect("0 to 10000", "corrections")
        self.expect("0 or more", "r")

    def step(
        self, denoise: Denoise, process: Process, history: History, xt: Tensor, t: Tensor, s: Tensor, noise: Noise
    ) -> tuple[Denoised, Gaussian]:
        kept = process.signal_and_noise(xt, t)[0] / process.signal_and_noise(xt, s)[0]
        x = xt
        for _ in range(self.corrections):
            slope, z = score(process, denoise(x, t).x0, x, t), noise(x)
            length = (slope * (z != 0)).flatten(1).norm(dim=1)  # padding gets no noise and must not count
            size = 2 * (self.r * z.flatten(1).norm(dim=1) / length.clamp(min=1e-12)) ** 2
            a = over_coordinates(size, x) * kept**2
            x = x + a * slope + (2 * a).sqrt() * z
        denoised = denoise(x, t)
        if self.predictor == "ancestral" or not bool((s > 0).all()):
            return denoised, process.posterior(denoised.x0, x, t, s)
        variance = over_coordinates(process.step_variance(t, s), x)
        return denoised, Gaussian((2 - kept) * x + variance * score(process, denoised.x0, x, t), variance)
