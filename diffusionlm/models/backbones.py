"""Transformers over noisy word vectors: latents in, one vector of outputs a position out.

Shape letters: B batch, L positions, D latent dimension, W width, H heads, O outputs (a word's logits or a vector).
A backbone's spec is a component; its ``build`` makes the network. All networks take the same four things: latents
(B, L, D), the time t in [0, 1] and gamma, each (B,) or (B, L), and a mask (B, L), True at real tokens, or None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from diffusionlm.config import Component, UserError


class Backbone(Component, family="backbone"):
    """Base of the backbones.

    Their networks map latents (B, L, D), t and gamma, each (B,) or (B, L), and a mask (B, L), True at non-padding tokens, or
    None, to outputs (B, L, O).
    """

    excludes_self: ClassVar[bool] = False  # no position's output depends on that position's own latents and noise level

    def build(self, inputs: int, outputs: int, max_length: int) -> nn.Module:
        """Return the network for latents of ``inputs`` and outputs of ``outputs`` coordinates."""
        raise NotImplementedError


def sinusoids(x: Tensor, size: int, max_period: float = 10_000.0) -> Tensor:
    """Encode numbers of any shape (...) as cosines and sines of falling frequency, (..., size), in fp32."""
    frequencies = torch.exp(-math.log(max_period) * torch.arange(size // 2, device=x.device) / (size // 2))
    angles = x.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise UserError(f"heads: expected a divisor of the width {width}, got {heads}")


def _check_sizes(spec: Transformer | LeaveOneOut) -> None:
    _check_heads(spec.width, spec.heads)
    if spec.neighbours < 0:
        raise UserError(f"neighbours: expected 0 or more, got {spec.neighbours}")


@dataclass(frozen=True)
class Bert(Backbone, name="bert"):
    """Diffusion-LM's network: BERT from random weights between two small perceptrons, t as a sinusoid on 0 ... 1000.

    Li et al. 2022, appendix B, and their released ``TransformerNetModel``: 87.1 M parameters with 821 words, D = 16.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    feedforward: int = 3072
    dropout: float = 0.1
    T: int = 2000

    def __post_init__(self) -> None:
        """Check the sizes."""
        _check_heads(self.width, self.heads)

    def build(self, inputs: int, outputs: int, max_length: int) -> nn.Module:
        """Make the network."""
        return BertNetwork(self, inputs, outputs, max_length)


class BertNetwork(nn.Module):
    """The network of ``Bert``."""

    def __init__(self, spec: Bert, inputs: int, outputs: int, max_length: int) -> None:
        """Make it; its positions are BERT's 512, or more where the texts are longer."""
        super().__init__()
        config = BertConfig(
            hidden_size=spec.width,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            intermediate_size=spec.feedforward,
            hidden_dropout_prob=spec.dropout,
            attention_probs_dropout_prob=spec.dropout,
            max_position_embeddings=max(512, max_length),
        )
        config._attn_implementation = "sdpa"
        self.T = spec.T
        self.time = nn.Sequential(nn.Linear(128, 512), nn.SiLU(), nn.Linear(512, spec.width))
        self.up = nn.Sequential(nn.Linear(inputs, spec.width), nn.Tanh(), nn.Linear(spec.width, spec.width))
        self.position = nn.Embedding(config.max_position_embeddings, spec.width)
        self.norm = nn.LayerNorm(spec.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(spec.dropout)
        self.encoder = BertEncoder(config)
        self.down = nn.Sequential(nn.Linear(spec.width, spec.width), nn.Tanh(), nn.Linear(spec.width, outputs))

    def forward(self, latents: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None) -> Tensor:
        """Map latents (B, L, D) to outputs (B, L, O)."""
        time = self.time(sinusoids((t * self.T - 1).clamp(min=0) * (1000 / self.T), 128))
        hidden = self.up(latents) + self.position.weight[: latents.shape[1]] + (time if t.dim() == 2 else time[:, None])
        attend = None if mask is None else mask[:, None, None, :]
        encoded = self.encoder(self.dropout(self.norm(hidden)), attention_mask=attend).last_hidden_state
        outputs: Tensor = self.down(encoded)
        return outputs


@dataclass(frozen=True)
class Transformer(Backbone, name="transformer"):
    """A small pre-norm Transformer: gamma's features are added to each position's input, so levels may differ by position.

    Positions are learned from both ends of the text, which tells the network how long it is. Before attention each
    position also takes in its neighbours, weighted coordinate by coordinate: attention takes thousands of steps to find
    them by itself (the "Canon layers" of Allen-Zhu 2025; Primer's convolutions, So et al. 2021).

    Args:
        layers: attention and perceptron, each.
        width: coordinates of the stream.
        heads: of attention.
        expansion: the perceptron's hidden coordinates over the stream's.
        gated: whether the perceptron multiplies two readings of the stream (GEGLU, Shazeer 2020), with about as many weights:
            what agrees with what, such as a "not" with the word after it, is a product.
        normed_input: whether the stream starts with coordinates of size 1, beside which what attention adds is heard.
        neighbours: positions on each side that are taken in; 0 leaves the convolution out.
        dropout: share of coordinates set to 0 in training.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    expansion: int = 4
    gated: bool = True
    normed_input: bool = True
    neighbours: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check the sizes."""
        _check_sizes(self)

    def build(self, inputs: int, outputs: int, max_length: int) -> nn.Module:
        """Make the network."""
        return TransformerNetwork(self, inputs, outputs, max_length)


class InputEmbedding(nn.Module):
    """What the small networks start from: latents, positions from both ends and noise levels, (B, L, W)."""

    def __init__(self, inputs: int, width: int, max_length: int) -> None:
        """Make it for texts of up to ``max_length`` tokens."""
        super().__init__()
        self.up = nn.Linear(inputs, width)
        self.level = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.from_start = nn.Embedding(max_length, width)
        self.from_end = nn.Embedding(max_length, width)

    def positions(self, length: int, mask: Tensor | None) -> Tensor:
        """Return the vectors of the positions, (L, W) or (B, L, W)."""
        start = torch.arange(length, device=self.from_start.weight.device)
        end = length - 1 - start if mask is None else (mask.sum(1, keepdim=True) - 1 - start).clamp(min=0)
        return nn.functional.embedding(start, self.from_start.weight) + nn.functional.embedding(end, self.from_end.weight)

    def read(self, latents: Tensor, gamma: Tensor, positions: Tensor) -> Tensor:
        """Return the start of the stream (B, L, W)."""
        level = self.level(sinusoids(gamma * 30, 64))  # gamma spans about 15; 30 spreads it over the frequencies
        read: Tensor = self.up(latents) + positions + (level if gamma.dim() == 2 else level[:, None])
        return read


class TransformerNetwork(InputEmbedding):
    """The network of ``Transformer``."""

    def __init__(self, spec: Transformer, inputs: int, outputs: int, max_length: int) -> None:
        """Make it for texts of up to ``max_length`` tokens."""
        super().__init__(inputs, spec.width, max_length)
        self.norm_input = nn.RMSNorm(spec.width) if spec.normed_input else nn.Identity()
        self.dropout = nn.Dropout(spec.dropout)
        self.blocks = nn.ModuleList([Block(spec) for _ in range(spec.layers)])
        self.norm = nn.RMSNorm(spec.width)
        self.down = nn.Linear(spec.width, outputs)

    def forward(self, latents: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None) -> Tensor:
        """Map latents (B, L, D) to outputs (B, L, O)."""
        read = self.read(latents, gamma, self.positions(latents.shape[1], mask))
        hidden = self.dropout(self.norm_input(read))
        bias = None if mask is None else _bias(mask[:, None, None, :]).to(hidden)
        for block in self.blocks:
            hidden = block(hidden, bias, mask)
        outputs: Tensor = self.down(self.norm(hidden))
        return outputs


@dataclass(frozen=True)
class LeaveOneOut(Backbone, name="leave-one-out"):
    """A Transformer that predicts each word from all the others: no position's outputs depend on its own noisy vector.

    What that vector says is added outside, as evidence, and with words noised independently this is Bayes' rule with nothing
    left out: p(w_i | x_t) ~ p(x_t at i | w_i) p(w_i | x_t elsewhere). That is exact where the network is told no earlier
    estimate: a self-conditioned one hears of a word's own vector through the others' estimates, as it did in training. What it
    buys is training: where the other words are clean, every position of a text is a cloze, while a network that reads all
    positions learns how words depend on each other only from those that happen to be hidden. Two streams read the text from the
    left and from the right, and queries, which start as their position and the streams' states beside it, attend to what the
    one has read up to there and the other from there on (the two towers of Baevski et al. 2019, *Cloze-driven Pretraining*,
    section 3; the queries of the Transformer-based Text Autoencoder, Shin et al. 2020).

    Args:
        layers: attention and perceptron, each, of each stream.
        query_layers: attention to both streams and perceptron, each, of the queries.
        width: coordinates of a stream.
        heads: of attention.
        expansion: a gated perceptron's hidden coordinates over the stream's, as if it were not gated.
        neighbours: positions behind that a stream takes in before it attends; 0 leaves the convolution out.
        dropout: share of coordinates set to 0 in training.
    """

    excludes_self: ClassVar[bool] = True
    gated: ClassVar[bool] = True

    layers: int = 2
    query_layers: int = 2
    width: int = 128
    heads: int = 4
    expansion: int = 4
    neighbours: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check the sizes."""
        _check_sizes(self)

    def build(self, inputs: int, outputs: int, max_length: int) -> nn.Module:
        """Make the network."""
        return LeaveOneOutNetwork(self, inputs, outputs, max_length)


class LeaveOneOutNetwork(InputEmbedding):
    """The network of ``LeaveOneOut``."""

    def __init__(self, spec: LeaveOneOut, inputs: int, outputs: int, max_length: int) -> None:
        """Make it for texts of up to ``max_length`` tokens."""
        super().__init__(inputs, spec.width, max_length)
        self.norm_input, self.norm_query = nn.RMSNorm(spec.width), nn.RMSNorm(spec.width)
        self.dropout = nn.Dropout(spec.dropout)
        sides: tuple[Literal["left", "right"], ...] = ("left", "right")
        self.streams = nn.ModuleList([nn.ModuleList([Block(spec, side) for _ in range(spec.layers)]) for side in sides])
        self.norms = nn.ModuleList([nn.RMSNorm(spec.width) for _ in sides])
        self.beside = nn.ModuleList([nn.Linear(spec.width, spec.width, bias=False) for _ in sides])
        self.queries = nn.ModuleList([CrossAttentionBlock(spec) for _ in range(spec.query_layers)])
        self.norm = nn.RMSNorm(spec.width)
        self.down = nn.Linear(spec.width, outputs)

    def forward(self, latents: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None) -> Tensor:
        """Map latents (B, L, D) to outputs (B, L, O)."""
        length = latents.shape[1]
        positions = self.positions(length, mask)
        hidden = self.dropout(self.norm_input(self.read(latents, gamma, positions)))
        place = torch.arange(length, device=latents.device)
        behind = place[None, :] - place[:, None]  # below 0 at what stands to the left of a position
        real = torch.ones_like(behind[None, None], dtype=torch.bool) if mask is None else mask[:, None, None, :]
        streams = []
        for blocks, norm, seen in zip(self.streams, self.norms, (behind <= 0, behind >= 0), strict=True):
            stream, bias = hidden, _bias(seen & real).to(hidden)
            for block in cast(nn.ModuleList, blocks):
                stream = block(stream, bias, mask)
            streams.append(norm(stream))
        left, right = (move(stream) for move, stream in zip(self.beside, streams, strict=True))
        if mask is not None:
            right = right * mask[..., None].to(right)
        left, right = nn.functional.pad(left[:, :-1], (0, 0, 1, 0)), nn.functional.pad(right[:, 1:], (0, 0, 0, 1))
        query = self.norm_query(positions + left + right)
        bias = torch.cat([_bias((behind < 0) & real), _bias((behind > 0) & real)], -1).to(hidden)
        for block in self.queries:
            query = block(query, streams, bias)
        outputs: Tensor = self.down(self.norm(query))
        return outputs


def _bias(seen: Tensor) -> Tensor:
    """Return what is added to attention scores: 0 where a position is seen."""
    return torch.where(seen, 0.0, -1e4)


class Sublayers(nn.Module):
    """What the layers are made of: attention and a perceptron, each on a normalised copy of the stream (Xiong et al. 2020)."""

    def __init__(self, spec: Transformer | LeaveOneOut) -> None:
        """Make the perceptron and the norms."""
        super().__init__()
        self.heads = spec.heads
        self.norm_attention, self.norm_feedforward = nn.RMSNorm(spec.width), nn.RMSNorm(spec.width)
        hidden = spec.expansion * spec.width
        hidden = 32 * math.ceil(hidden / 48) if spec.gated else hidden  # two thirds, in multiples that are fast
        self.expand = nn.Linear(spec.width, hidden, bias=False)
        self.gate = nn.Linear(spec.width, hidden, bias=False) if spec.gated else None
        self.contract = nn.Linear(hidden, spec.width, bias=False)
        self.dropout = nn.Dropout(spec.dropout)

    def split(self, x: Tensor) -> Tensor:
        """Give each head its coordinates: (B, L, W) to (B, H, L, W / H)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attended(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Return what each query (B, H, L, W / H) takes from the values, the heads joined: (B, L, W)."""
        # Below about a hundred positions plain products are faster than the fused kernel on a CPU.
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        weights = (scores if bias is None else scores + bias).softmax(-1).to(value)
        return (weights @ value).transpose(1, 2).flatten(2)

    def feedforward(self, hidden: Tensor) -> Tensor:
        """Add the perceptron's say to the stream (B, L, W)."""
        normed = self.norm_feedforward(hidden)
        expanded = nn.functional.gelu(self.expand(normed))
        return hidden + self.dropout(self.contract(expanded if self.gate is None else expanded * self.gate(normed)))


class Block(Sublayers):
    """A layer of a stream: neighbours, attention and a perceptron."""

    def __init__(self, spec: Transformer | LeaveOneOut, side: Literal["both", "left", "right"] = "both") -> None:
        """Make a layer whose neighbours are on this ``side``."""
        super().__init__(spec)
        self.neighbours = DepthwiseConv(spec.neighbours, spec.width, side) if spec.neighbours else None
        self.query, self.key, self.value, self.merge = (nn.Linear(spec.width, spec.width, bias=False) for _ in range(4))

    def forward(self, hidden: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        """Map the stream (B, L, W) to itself; ``bias``, (B, 1, 1, L) or (B, 1, L, L), is added to the attention scores."""
        normed = self.norm_attention(hidden)
        query, key, value = (self.split(project(normed)) for project in (self.query, self.key, self.value))
        if self.neighbours is not None:
            hidden = hidden + self.neighbours(normed, mask)
        hidden = hidden + self.dropout(self.merge(self.attended(query, key, value, bias)))
        return self.feedforward(hidden)


class CrossAttentionBlock(Sublayers):
    """A layer of the queries: attention to both streams, and a perceptron."""

    def __init__(self, spec: Transformer | LeaveOneOut) -> None:
        """Make a layer."""
        super().__init__(spec)
        self.query, self.merge = (nn.Linear(spec.width, spec.width, bias=False) for _ in range(2))
        self.keys, self.values = (
            nn.ModuleList([nn.Linear(spec.width, spec.width, bias=False) for _ in range(2)]) for _ in range(2)
        )

    def forward(self, hidden: Tensor, streams: Sequence[Tensor], bias: Tensor) -> Tensor:
        """Map the queries (B, L, W) to themselves; ``bias`` (B, 1, L, 2 L) says which states of the streams each sees."""
        query = self.split(self.query(self.norm_attention(hidden)))
        key, value = (
            torch.cat([self.split(project(stream)) for project, stream in zip(projections, streams, strict=True)], 2)
            for projections in (self.keys, self.values)
        )
        return self.feedforward(hidden + self.dropout(self.merge(self.attended(query, key, value, bias))))


class DepthwiseConv(nn.Module):
    """A depthwise convolution over ``reach`` positions on each side, or on one, and the position itself; it starts at 0."""

    def __init__(self, reach: int, width: int, side: Literal["both", "left", "right"] = "both") -> None:
        """Make it; the weights are kept in four dimensions, since they are no matrix to an optimizer of matrices."""
        super().__init__()
        self.left, self.right = (0 if side == other else reach for other in ("right", "left"))
        self.weight = nn.Parameter(torch.zeros(self.left + 1 + self.right, 1, 1, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map (B, L, W) to the same; padding counts as 0."""
        length = x.shape[1]
        if mask is not None:
            x = x * mask[..., None].to(x)
        padded = nn.functional.pad(x, (0, 0, self.left, self.right))
        # Sums of shifted copies: PyTorch's depthwise convolution is several times slower on a CPU.
        shifted = [padded[:, i : i + length] * weight.to(x) for i, weight in enumerate(self.weight)]
        return sum(shifted[1:], shifted[0])
