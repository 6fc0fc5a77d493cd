"""The denoising model: word vectors, a network, and what the network predicts.

    x_0 = E_w            denoise(x_t, t) -> token logits and x_0            words = argmax of the logits

``x0``, ``eps``, ``v``: the network predicts a vector, and rounding is x_0 E^T + b (Diffusion-LM, Li et al. 2022, section 4.2).
``logits``: it predicts token logits, and x_0 is softmax(logits) E, their exact posterior mean. With ``evidence`` the token
likelihood term log p(x_t | w) = (alpha / sigma^2) x_t E^T is added: Bayes' rule with the network as the prior from context
(Plaid, Gulrajani and Hashimoto 2023, section 3.2; LangFlow 2026).

Shapes: B batch, L positions, D latent dimension, V words.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffusionlm.core.process import Process, VariancePreserving, alpha, over_coordinates, sigma
from diffusionlm.core.sampler import Denoised

DEFAULT_EVIDENCE = 50.0
MAX_GAMMA = 12.0  # networks receive gamma clamped to this: it is infinite at t = 0

Prediction = Literal["logits", "x0", "eps", "v"]


class WordVectors(nn.Module):
    """The table E (V, D), a ``Codec``. ``normalised`` rows have norm sqrt(D), ``frozen`` ones are also not trained."""

    token_aligned = True
    embedding: nn.Embedding
    rounding_bias: nn.Parameter | None
    normalised: bool

    def set_vectors(self, vocabulary: int, dimension: int, kind: Literal["normalised", "free", "frozen"]) -> None:
        """Create the table."""
        self.embedding = nn.Embedding(vocabulary, dimension)
        self.embedding.weight.requires_grad_(kind != "frozen")
        self.normalised = kind != "free"
        self.rounding_bias = None

    def word_vectors(self) -> Tensor:
        """Return E (V, D) in fp32."""
        weight = self.embedding.weight.float()
        return nn.functional.normalize(weight, dim=-1) * math.sqrt(weight.shape[1]) if self.normalised else weight

    def encode(self, ids: Tensor) -> Tensor:
        """Return the word vectors x_0 (B, L, D) of ``ids`` (B, L)."""
        # The backward of indexing, E[ids], is not deterministic with two threads; that of F.embedding is.
        return nn.functional.embedding(ids, self.word_vectors())

    def decode(self, x0: Tensor) -> Tensor:
        """Return the rounding logits x_0 E^T + b (B, L, V)."""
        logits = x0 @ self.word_vectors().T
        return logits if self.rounding_bias is None else logits + self.rounding_bias


class DenoisingModel(WordVectors):
    """Word vectors and the network that denoises them; ``models.diffusion.DiffusionLM`` adds config, loading and saving."""

    network: nn.Module
    process: Process
    prediction: Prediction
    evidence: float  # ceiling of alpha / sigma^2 in the token likelihood term; 0 leaves the term out
    reads_evidence: bool  # the network also receives the token posterior of the noisy vector alone
    self_conditions: bool  # the network also receives its last estimate of x_0
    learned_variance: bool

    @property
    def has_logits(self) -> bool:
        """Whether the network predicts token logits, not vectors."""
        return self.prediction == "logits"

    def forward(
        self, xt: Tensor, t: Tensor, mask: Tensor | None = None, x0_previous: Tensor | None = None,
        evidence_mask: Tensor | None = None, condition: Any = None,
    ) -> Denoised:  # fmt: skip
        """Denoise ``xt`` (B, L, D) at times ``t`` (B,) or (B, L).

        ``mask`` (B, L) is True at non-padding tokens; ``x0_previous`` (B, L, D) is the last estimate, for self-conditioning;
        ``evidence_mask`` (B, L) is False where the token likelihood term is left out; ``condition`` goes to ``run_network``.
        """
        if self.has_logits:
            logits = self.token_logits(xt, t, mask, x0_previous, evidence_mask, condition)
            with torch.autocast(xt.device.type, enabled=False):
                return Denoised(logits.softmax(-1) @ self.word_vectors(), logits)
        output = self._output(xt, t, mask, x0_previous, condition)
        with torch.autocast(xt.device.type, enabled=False):
            output, share = output.chunk(2, -1) if self.learned_variance else (output, None)
            x0 = self._clean(output, xt, t)
            return Denoised(x0, self.decode(x0), None if share is None else share.sigmoid())

    def token_logits(
        self, xt: Tensor, t: Tensor, mask: Tensor | None = None, x0_previous: Tensor | None = None,
        evidence_mask: Tensor | None = None, condition: Any = None,
    ) -> Tensor:  # fmt: skip
        """Return the logits (B, L, V) of ``forward`` alone: training needs no x_0, a tenth of a small model's work."""
        # Mixed precision is for the network: the token likelihood term and the softmax need more than 8 bits of mantissa.
        with torch.autocast(xt.device.type, enabled=False):
            read, evidence = self.evidence_terms(xt, t, condition)
            inputs = [read.softmax(-1)] if self.reads_evidence else []
        output = self._output(xt, t, mask, x0_previous, condition, *inputs)
        if not self.evidence:
            return output
        return output + (evidence if evidence_mask is None else torch.where(evidence_mask[..., None], evidence, 0))

    def _output(
        self, xt: Tensor, t: Tensor, mask: Tensor | None, x0_previous: Tensor | None, condition: Any, *more: Tensor
    ) -> Tensor:
        gamma = self.process.schedule.gamma(t)
        xt = self.process.standardize(xt, gamma)
        # Beside the token posterior the vector itself is scaled down with its signal, so that pure noise is no input.
        latents = [over_coordinates(alpha(gamma), xt) * xt if more else xt, *more]
        if self.self_conditions:
            latents.insert(1, torch.zeros_like(xt) if x0_previous is None else x0_previous)
        gamma = gamma.clamp(-MAX_GAMMA, MAX_GAMMA).float()
        return self.run_network(torch.cat(latents, -1), t.float(), gamma, mask, condition).float()

    def run_network(self, inputs: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None, condition: Any) -> Tensor:
        """Return the network's output (B, L, O) for its ``inputs`` (B, L, I); models with conditions also pass these."""
        return self.network(inputs, t, gamma, mask)

    def evidence_terms(self, xt: Tensor, t: Tensor, condition: Any) -> tuple[Tensor, Tensor]:
        """Return the token likelihood term (B, L, V) as the network reads it, and as it is added to the logits."""
        evidence = self._evidence(xt, t)
        return evidence.detach(), evidence

    def _evidence(self, xt: Tensor, t: Tensor) -> Tensor:
        """Return log p(x_t | w) of each position's own noisy vector (B, L, V), up to a constant."""
        gamma = self.process.schedule.gamma(t)
        factor = (alpha(gamma) / sigma(gamma) ** 2).clamp(max=self.evidence or DEFAULT_EVIDENCE)
        return over_coordinates(factor, xt) * self.process.standardize(xt, gamma) @ self.word_vectors().T

    def _clean(self, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        process = VariancePreserving(self.process.schedule)
        xt = self.process.standardize(xt, process.schedule.gamma(t))
        match self.prediction:
            case "eps":
                return process.x0_from_eps(output, xt, t)
            case "v":
                return process.x0_from_v(output, xt, t)
        return output
