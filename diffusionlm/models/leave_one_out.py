"""The leave-one-out backbone: each word is predicted from all other words.

Shape letters: B batch, L positions, D latent dimension, W width, H heads, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from diffusionlm.models.backbones import (
    AttentionBackbone,
    Block,
    Context,
    InputEmbedding,
    LayeredNetwork,
    Residuals,
    Sublayers,
    attention_bias,
    through,
)


@dataclass(frozen=True)
class LeaveOneOut(AttentionBackbone, name="leave-one-out"):
    """A Transformer that predicts each word from all other words: no output depends on its own position's noisy vector.

        p(w_i | x_t)  ~  p(x_t^i | w_i)  p(w_i | x_t elsewhere)

    The model adds the first factor, the token likelihood term; the network predicts the second. As words are noised
    independently, this is exact, except with self-conditioning, where other words' estimates depend on the vector at i. The
    gain is in training: with clean words every position is a masked-token prediction (cloze), whereas a network that attends
    to all positions learns from hidden words only. Two streams read the text from the left and from the right. Queries start
    from their position and the streams' neighbouring states, and attend to the left stream before the position and to the
    right stream after it (the two towers of Baevski et al. 2019, *Cloze-driven Pretraining*, section 3; the queries of the
    Transformer-based Text Autoencoder, Shin et al. 2020).

    Args:
        layers: layers of each stream, of attention and perceptron.
        query_layers: layers of the queries, of attention to both streams and perceptron.
        width: coordinates of a stream.
        expansion: hidden width of the perceptron relative to the stream, before the reduction by a third for gating.
        neighbours: preceding positions in the convolution before attention; 0 leaves it out.
        heads: attention heads of a layer.
        dropout: rate of dropout in training.
    """

    excludes_self: ClassVar[bool] = True
    has_context: ClassVar[bool] = True
    projections: ClassVar[tuple[str, ...]] = ("query", "value", "values")
    gated: ClassVar[bool] = True
    normed_input: ClassVar[bool] = True

    layers: int = 2
    query_layers: int = 2
    width: int = 128
    heads: int = 4
    expansion: int = 4
    neighbours: int = 2
    dropout: float = 0.0

    def build(self, inputs: int, outputs: int, max_length: int, context: bool = False) -> nn.Module:
        return LeaveOneOutNetwork(self, inputs, outputs, max_length, context)


class LeaveOneOutNetwork(InputEmbedding, LayeredNetwork):
    """The network of ``LeaveOneOut``; its streams and its queries attend to the states of an encoder."""

    def __init__(self, spec: LeaveOneOut, inputs: int, outputs: int, max_length: int, context: bool = False) -> None:
        super().__init__(spec, inputs, max_length)
        self.norm_query = nn.RMSNorm(spec.width)
        sides: tuple[Literal["left", "right"], ...] = ("left", "right")
        self.streams = nn.ModuleList(
            [nn.ModuleList([Block(spec, side, context) for _ in range(spec.layers)]) for side in sides]
        )
        self.norms = nn.ModuleList([nn.RMSNorm(spec.width) for _ in sides])
        self.beside = nn.ModuleList([nn.Linear(spec.width, spec.width, bias=False) for _ in sides])
        self.queries = nn.ModuleList([CrossAttentionBlock(spec, context) for _ in range(spec.query_layers)])
        self.norm = nn.RMSNorm(spec.width)
        self.down = nn.Linear(spec.width, outputs)

    def forward(
        self, latents: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None, context: Context | None = None,
        residuals: Residuals = (),
    ) -> Tensor:  # fmt: skip
        queries = self.hidden(latents, gamma, mask, context, None, residuals)[-1]
        return self.down(self.norm(queries[-1]))

    def stacks(self) -> list[nn.ModuleList]:
        """Return the layers of the left and of the right stream, and those of the queries."""
        return [*cast(list[nn.ModuleList], list(self.streams)), self.queries]

    def hidden(
        self, latents: Tensor, gamma: Tensor, mask: Tensor | None, context: Context | None = None,
        signal: Tensor | None = None, residuals: Residuals = (),
    ) -> list[list[Tensor]]:  # fmt: skip
        contexts = iter(() if context is None else context.layers)
        added = residuals or ((), (), ())
        hidden, positions = self.read(latents, gamma, mask)
        hidden = hidden if signal is None else hidden + signal.to(hidden)
        place = torch.arange(latents.shape[1], device=latents.device)
        behind = place[None, :] - place[:, None]  # negative to the left of a position
        real = torch.ones_like(behind[None, None], dtype=torch.bool) if mask is None else mask[:, None, None, :]
        stacks, streams = [], []
        for number, (norm, seen) in enumerate(zip(self.norms, (behind <= 0, behind >= 0), strict=True)):
            bias = attention_bias(seen & real).to(hidden)
            bias = bias if context is None else context.bias(bias, hidden.shape[1])
            stacks.append(through(self.stacks()[number], hidden, added[number], bias, mask, contexts=contexts))
            streams.append(norm(stacks[-1][-1]))
        left, right = (move(stream) for move, stream in zip(self.beside, streams, strict=True))
        if mask is not None:
            right = right * mask[..., None].to(right)
        left, right = nn.functional.pad(left[:, :-1], (0, 0, 1, 0)), nn.functional.pad(right[:, 1:], (0, 0, 0, 1))
        query = self.norm_query(positions + left + right)
        bias = torch.cat([attention_bias((behind < 0) & real), attention_bias((behind > 0) & real)], -1).to(hidden)
        bias = bias if context is None else context.bias(bias, 2 * hidden.shape[1])
        query = query if signal is None else query + signal.to(query)
        return [*stacks, through(self.queries, query, added[-1], streams, bias, contexts=contexts)]


class CrossAttentionBlock(Sublayers):
    """A layer of the queries: attention to both streams and a perceptron."""

    def __init__(self, spec: LeaveOneOut, context: bool = False) -> None:
        super().__init__(spec, context)
        self.query, self.merge = (nn.Linear(spec.width, spec.width, bias=False) for _ in range(2))
        self.keys, self.values = (
            nn.ModuleList([nn.Linear(spec.width, spec.width, bias=False) for _ in range(2)]) for _ in range(2)
        )

    def forward(
        self, hidden: Tensor, streams: Sequence[Tensor], bias: Tensor, context: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Map the queries (B, L, W) to themselves; ``bias`` (B, 1, L, 2 L) hides stream states from each query.

        With a ``context``, the keys and values of S states, the bias is (B, 1, L, 2 L + S).
        """
        query = self.split(self.query(self.norm_attention(hidden)))
        key, value = (
            torch.cat([self.split(project(stream)) for project, stream in zip(projections, streams, strict=True)], 2)
            for projections in (self.keys, self.values)
        )
        return self.feedforward(hidden + self.dropout(self.merge(self.attended(query, key, value, bias, context))))
