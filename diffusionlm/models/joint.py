"""A joint distribution of a text's tokens, for sampling in few network evaluations.

A denoiser predicts each token independently. That is exact in the limit of many small steps; in a large step, tokens that are
drawn independently do not fit each other. The joint head adds to the denoiser's logits what the tokens before say:

    p(w_1 .. w_L | x_t) = prod_i softmax( logits_i + g_i(w_1 .. w_{i-1}, logits) E^T )

The evaluation of the network is shared by all tokens; what is repeated for each is a small recurrent layer g, which also reads
a summary of the predictions at later positions: where the text ends, and what is certain ahead. With tokens drawn
from the joint distribution x_s ~ q(x_s | x_t, x_0), a step of any size is ancestral sampling, as far as the head is accurate.
Combining a denoiser's marginals with an autoregressive model's dependence is Discrete Copula Diffusion (Liu et al. 2024,
arXiv:2410.01949), whose second model is a language model of its own.

Shapes: B batch, L positions, D latent dimension, V words, W width of the head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class JointHead(nn.Module):
    """The correction g of the logits, before the product with the word vectors."""

    def __init__(self, vocabulary: int, dimension: int, width: int) -> None:
        super().__init__()
        self.read = nn.Linear(vocabulary, width, bias=False)
        self.ahead = nn.GRU(width, width, batch_first=True)
        self.recurrent = nn.GRU(dimension + width, width, batch_first=True)
        self.mix = nn.Linear(dimension + 2 * width, width)
        self.out = nn.Linear(width, dimension)

    def reset(self) -> None:
        """Start without a correction."""
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def features(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return what the head reads (B, L, W) of the denoiser's ``logits`` (B, L, V), at each position and behind it.

        ``mask`` (B, L) is True at non-padding tokens, which are first in each row.
        """
        read: Tensor = self.read(logits.softmax(-1))
        place = torch.arange(mask.shape[1], device=mask.device)
        backward = (mask.sum(1, keepdim=True) - 1 - place).clamp(min=0)[..., None].expand(-1, -1, read.shape[-1])
        ahead, _ = self.ahead(read.gather(1, backward))
        return read + ahead.gather(1, backward)

    def forward(self, features: Tensor, before: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the corrections (B, L, D), and the state (1, B, W) behind the last position.

        ``before`` (B, L, D) are the vectors of the preceding tokens, ``state`` that of the positions before these.
        """
        inputs = torch.cat([before, features], -1)
        hidden, state = self.recurrent(inputs, state)
        return self.out(nn.functional.gelu(self.mix(torch.cat([hidden, inputs], -1)))), state

    def logits(self, logits: Tensor, x0: Tensor, embedding: Tensor, mask: Tensor) -> Tensor:
        """Return the logits (B, L, V) of each token, given those before it, for a text with word vectors ``x0`` (B, L, D)."""
        before = nn.functional.pad(x0[:, :-1], (0, 0, 1, 0))
        return logits + self(self.features(logits, mask), before)[0] @ embedding.T
