"""Backbones: Transformers from latents to an output at each position.

Shape letters: B batch, L positions, D latent dimension, W width, H heads, O outputs (token logits or a vector).
A backbone's spec is a component whose ``build`` returns the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from diffusionlm.config import Component, UserError

if TYPE_CHECKING:
    from diffusionlm.models.leave_one_out import LeaveOneOut


class Backbone(Component, family="backbone"):
    """Base of the backbones.

    Their networks map latents (B, L, D), t and gamma, each (B,) or (B, L), and a mask (B, L), True at non-padding tokens, or
    None, to outputs (B, L, O).
    """

    excludes_self: ClassVar[bool] = False  # no position's output depends on that position's own latents and noise level
    has_context: ClassVar[bool] = False  # networks may attend to the states of an encoder
    projections: ClassVar[tuple[str, ...]] = ()  # names of the query and value projections, which LoRA changes by default

    def build(self, inputs: int, outputs: int, max_length: int) -> nn.Module:
        """Return the network for latents of ``inputs`` and outputs of ``outputs`` coordinates.

        Where ``has_context`` there is a further argument ``context``: whether the network attends to states of its width. Its
        method ``context`` then maps states (B, S, W) and their mask (B, S) to the ``Context`` that ``forward`` takes last.
        """
        raise NotImplementedError


def sinusoids(x: Tensor, size: int, max_period: float = 10_000.0) -> Tensor:
    """Return sinusoidal features (..., size) of numbers (...), in fp32."""
    frequencies = torch.exp(-math.log(max_period) * torch.arange(size // 2, device=x.device) / (size // 2))
    angles = x.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


@dataclass(frozen=True)
class Context:
    """An encoder's states as keys and values (B, H, S, W / H) for each layer that attends to them, and their mask (B, S)."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    seen: Tensor

    def rows(self, index: Tensor) -> Context:
        """Return the context of the samples ``index``."""
        return Context(tuple((key[index], value[index]) for key, value in self.layers), self.seen[index])

    def bias(self, bias: Tensor | None, length: int) -> Tensor:
        """Return ``bias`` (B, 1, 1 or L, K) of attention scores, and behind it that of the states: (B, 1, 1 or L, K + S)."""
        states = attention_bias(self.seen[:, None, None, :]).to(self.layers[0][0])
        own = states.new_zeros(1, 1, 1, length) if bias is None else bias
        size = (len(states), 1, own.shape[2])
        return torch.cat([own.expand(*size, -1), states.expand(*size, -1)], -1)


class AttentionBackbone(Backbone):
    """Base of the hyperparameters of the library's own networks."""

    width: int
    heads: int

    def __post_init__(self) -> None:
        ranges = {
            "1 to 1000": ("heads", "layers", "query_layers", "expansion"),
            "1 to 100000": ("width", "feedforward"),
            "0 to 1000": ("neighbours",),
            "at least 1": ("T",),
            "a share from 0 to below 1": ("dropout",),
        }
        for expected, names in ranges.items():
            self.expect(expected, *(name for name in names if name in vars(self)))
        if self.width % self.heads:
            raise UserError(f"heads: expected a divisor of the width {self.width}, got {self.heads}")


@dataclass(frozen=True)
class Bert(AttentionBackbone, name="bert"):
    """Diffusion-LM's network: a BERT encoder with random weights between two small perceptrons; t as sinusoids on 0 ... 1000.

    Li et al. 2022, appendix B, and their released ``TransformerNetModel``: 87.1 M parameters with 821 words, D = 16.

    Args:
        layers: layers of attention and perceptron.
        width: coordinates of the residual stream.
        heads: attention heads of a layer.
        feedforward: hidden width of the perceptrons.
        dropout: rate of dropout in training.
        T: training steps of the schedule, by which t is scaled.
        time_features: number of sinusoids of t.
    """

    projections: ClassVar[tuple[str, ...]] = ("query", "value")

    layers: int = 12
    width: int = 768
    heads: int = 12
    feedforward: int = 3072
    dropout: float = 0.1
    T: int = 2000
    time_features: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect("2 to 100000", "time_features")
        if self.time_features % 2:
            raise UserError(f"time_features: expected an even number, sines and cosines, got {self.time_features}")

    def build(self, inputs: int, outputs: int, max_length: int) -> nn.Module:
        return BertNetwork(self, inputs, outputs, max_length)


class BertNetwork(nn.Module):
    """The network of ``Bert``, for 512 positions, or ``max_length`` if that is more."""

    def __init__(self, spec: Bert, inputs: int, outputs: int, max_length: int) -> None:
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
        self.T, self.time_features = spec.T, spec.time_features
        hidden = 4 * spec.time_features
        self.time = nn.Sequential(nn.Linear(spec.time_features, hidden), nn.SiLU(), nn.Linear(hidden, spec.width))
        self.up = nn.Sequential(nn.Linear(inputs, spec.width), nn.Tanh(), nn.Linear(spec.width, spec.width))
        self.position = nn.Embedding(config.max_position_embeddings, spec.width)
        self.norm = nn.LayerNorm(spec.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(spec.dropout)
        self.encoder = BertEncoder(config)
        self.down = nn.Sequential(nn.Linear(spec.width, spec.width), nn.Tanh(), nn.Linear(spec.width, outputs))

    def forward(self, latents: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None) -> Tensor:
        time = self.time(sinusoids((t * self.T - 1).clamp(min=0) * (1000 / self.T), self.time_features))
        hidden = self.up(latents) + self.position.weight[: latents.shape[1]] + (time if t.dim() == 2 else time[:, None])
        attend = None if mask is None else mask[:, None, None, :]
        encoded = self.encoder(self.dropout(self.norm(hidden)), attention_mask=attend).last_hidden_state
        return self.down(encoded)


@dataclass(frozen=True)
class Transformer(AttentionBackbone, name="transformer"):
    """A small pre-norm Transformer whose noise levels may differ by position: features of gamma are added to the inputs.

    Learned positions count from both ends of the text, so that the network receives its length. A depthwise convolution
    before attention mixes neighbouring positions, which attention alone takes thousands of steps to find (the "Canon
    layers" of Allen-Zhu 2025; Primer, So et al. 2021).

    Args:
        layers: layers of attention and perceptron.
        width: coordinates of the residual stream.
        expansion: hidden width of the perceptron relative to the stream.
        gated: whether the perceptron is a GEGLU (Shazeer 2020), with about as many weights: interactions, such as that of "not"
            with the next word, are products.
        normed_input: whether the stream starts normalised, at the scale of the layers' updates.
        neighbours: positions on each side in the convolution; 0 leaves it out.
        heads: attention heads of a layer.
        dropout: rate of dropout in training.
    """

    has_context: ClassVar[bool] = True
    projections: ClassVar[tuple[str, ...]] = ("query", "value")

    layers: int = 4
    width: int = 128
    heads: int = 4
    expansion: int = 4
    gated: bool = True
    normed_input: bool = True
    neighbours: int = 2
    dropout: float = 0.0

    def build(self, inputs: int, outputs: int, max_length: int, context: bool = False) -> nn.Module:
        return TransformerNetwork(self, inputs, outputs, max_length, context)


class InputEmbedding(nn.Module):
    """The input of the small networks, for texts of up to ``max_length`` tokens.

    Projected latents plus features of positions and noise levels, (B, L, W).
    """

    def __init__(self, spec: Transformer | LeaveOneOut, inputs: int, max_length: int) -> None:
        super().__init__()
        width = spec.width
        self.up = nn.Linear(inputs, width)
        self.level = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.from_start = nn.Embedding(max_length, width)
        self.from_end = nn.Embedding(max_length, width)
        self.norm_input = nn.RMSNorm(width) if spec.normed_input else nn.Identity()
        self.dropout = nn.Dropout(spec.dropout)

    def read(self, latents: Tensor, gamma: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the initial stream (B, L, W), and the position features in it, (L, W) or (B, L, W)."""
        length = latents.shape[1]
        start = torch.arange(length, device=latents.device)
        end = length - 1 - start if mask is None else (mask.sum(1, keepdim=True) - 1 - start).clamp(min=0)
        positions = nn.functional.embedding(start, self.from_start.weight) + nn.functional.embedding(end, self.from_end.weight)
        level = self.level(sinusoids(gamma * 30, 64))  # gamma spans about 15; 30 spreads it over the frequencies
        stream = self.up(latents) + positions + (level if gamma.dim() == 2 else level[:, None])
        return self.dropout(self.norm_input(stream)), positions


class ContextReader(nn.Module):
    """Base of networks whose layers may attend to the states of an encoder."""

    def context(self, states: Tensor, seen: Tensor) -> Context:
        """Return the keys and values of ``states`` (B, S, W), of which those ``seen`` (B, S) are attended to."""
        layers = [module for module in self.modules() if isinstance(module, Sublayers) and module.states is not None]
        return Context(tuple(layer.read(states) for layer in layers), seen)


Residuals = Sequence[Sequence[Tensor]]  # (B, L, W) for the first layers of each stack of layers


class LayeredNetwork(ContextReader):
    """Base of networks that a control branch can read and change: stacks of layers, each of a stream (B, L, W).

    ``forward`` takes ``residuals`` last, as ``hidden`` does.
    """

    def stacks(self) -> list[nn.ModuleList]:
        """Return the stacks of layers, in the order of ``hidden``."""
        raise NotImplementedError

    def hidden(
        self, latents: Tensor, gamma: Tensor, mask: Tensor | None, context: Context | None = None,
        signal: Tensor | None = None, residuals: Residuals = (),
    ) -> list[list[Tensor]]:  # fmt: skip
        """Return the stream after each layer of each stack.

        ``signal`` (B, L, W) is added to the input of each stack, and ``residuals`` to the outputs of its first layers.
        """
        raise NotImplementedError


def through(
    layers: Iterable[nn.Module], stream: Tensor, added: Sequence[Tensor], *given: Any, contexts: Iterator[Any]
) -> list[Tensor]:
    """Return the ``stream`` after each of ``layers``, to the first of which ``added`` is added.

    A layer receives the stream, what is ``given``, and the next of the ``contexts``, or None behind the last.
    """
    streams: list[Tensor] = []
    for number, layer in enumerate(layers):
        stream = layer(stream, *given, next(contexts, None))
        stream = stream + added[number].to(stream) if number < len(added) else stream
        streams.append(stream)
    return streams


class TransformerNetwork(InputEmbedding, LayeredNetwork):
    """The network of ``Transformer``."""

    def __init__(self, spec: Transformer, inputs: int, outputs: int, max_length: int, context: bool = False) -> None:
        super().__init__(spec, inputs, max_length)
        self.blocks = nn.ModuleList([Block(spec, context=context) for _ in range(spec.layers)])
        self.norm = nn.RMSNorm(spec.width)
        self.down = nn.Linear(spec.width, outputs)

    def forward(
        self, latents: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None, context: Context | None = None,
        residuals: Residuals = (),
    ) -> Tensor:  # fmt: skip
        (streams,) = self.hidden(latents, gamma, mask, context, None, residuals)
        return self.down(self.norm(streams[-1]))

    def stacks(self) -> list[nn.ModuleList]:
        return [self.blocks]

    def hidden(
        self, latents: Tensor, gamma: Tensor, mask: Tensor | None, context: Context | None = None,
        signal: Tensor | None = None, residuals: Residuals = (),
    ) -> list[list[Tensor]]:  # fmt: skip
        stream, _ = self.read(latents, gamma, mask)
        bias = None if mask is None else attention_bias(mask[:, None, None, :]).to(stream)
        bias = bias if context is None else context.bias(bias, stream.shape[1])
        stream = stream if signal is None else stream + signal.to(stream)
        (added,) = residuals or ((),)
        return [through(self.blocks, stream, added, bias, mask, contexts=iter(() if context is None else context.layers))]


def attention_bias(seen: Tensor) -> Tensor:
    """Return the bias of attention scores: 0 at visible positions, -10^4 elsewhere."""
    return torch.where(seen, 0.0, -1e4)


class Sublayers(nn.Module):
    """Base of the layers: pre-norm attention and perceptron (Xiong et al. 2020)."""

    def __init__(self, spec: Transformer | LeaveOneOut, context: bool = False) -> None:
        super().__init__()
        self.heads = spec.heads
        self.states = nn.Linear(spec.width, 2 * spec.width, bias=False) if context else None
        self.norm_attention, self.norm_feedforward = nn.RMSNorm(spec.width), nn.RMSNorm(spec.width)
        hidden = spec.expansion * spec.width
        hidden = 32 * math.ceil(hidden / 48) if spec.gated else hidden  # two thirds, rounded up to a multiple of 32 for speed
        self.expand = nn.Linear(spec.width, hidden, bias=False)
        self.gate = nn.Linear(spec.width, hidden, bias=False) if spec.gated else None
        self.contract = nn.Linear(hidden, spec.width, bias=False)
        self.dropout = nn.Dropout(spec.dropout)

    def split(self, x: Tensor) -> Tensor:
        """Split the coordinates among heads: (B, L, W) to (B, H, L, W / H)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attended(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, context: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return attention outputs (B, L, W) for queries, keys and values (B, H, L, W / H), and those of a ``context``."""
        if context is not None:
            key, value = torch.cat([key, context[0].to(key)], 2), torch.cat([value, context[1].to(value)], 2)
        # Below about a hundred positions plain products are faster than the fused kernel on a CPU.
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        weights = (scores if bias is None else scores + bias).softmax(-1).to(value)
        return (weights @ value).transpose(1, 2).flatten(2)

    def read(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values (B, H, S, W / H) of an encoder's ``states`` (B, S, W)."""
        assert self.states is not None
        key, value = self.states(states).chunk(2, -1)
        return self.split(key), self.split(value)

    def feedforward(self, hidden: Tensor) -> Tensor:
        """Add the perceptron's output to the stream (B, L, W)."""
        normed = self.norm_feedforward(hidden)
        expanded = nn.functional.gelu(self.expand(normed))
        return hidden + self.dropout(self.contract(expanded if self.gate is None else expanded * self.gate(normed)))


class Block(Sublayers):
    """A layer of a stream: depthwise convolution over one ``side`` or both, attention and a perceptron."""

    def __init__(
        self, spec: Transformer | LeaveOneOut, side: Literal["both", "left", "right"] = "both", context: bool = False
    ) -> None:
        super().__init__(spec, context)
        self.neighbours = DepthwiseConv(spec.neighbours, spec.width, side) if spec.neighbours else None
        self.query, self.key, self.value, self.merge = (nn.Linear(spec.width, spec.width, bias=False) for _ in range(4))

    def forward(
        self, hidden: Tensor, bias: Tensor | None, mask: Tensor | None, context: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Map the stream (B, L, W) to itself; ``bias``, (B, 1, 1 or L, L), is added to the attention scores.

        With a ``context``, the keys and values of S states, the bias is (B, 1, 1 or L, L + S).
        """
        normed = self.norm_attention(hidden)
        query, key, value = (self.split(project(normed)) for project in (self.query, self.key, self.value))
        if self.neighbours is not None:
            hidden = hidden + self.neighbours(normed, mask)
        hidden = hidden + self.dropout(self.merge(self.attended(query, key, value, bias, context)))
        return self.feedforward(hidden)


class DepthwiseConv(nn.Module):
    """A depthwise convolution over each position and ``reach`` positions on each side, or on one; starts at 0."""

    def __init__(self, reach: int, width: int, side: Literal["both", "left", "right"] = "both") -> None:
        super().__init__()
        self.left, self.right = (0 if side == other else reach for other in ("right", "left"))
        # Four-dimensional, so that optimizers of matrices (Muon) skip it.
        self.weight = nn.Parameter(torch.zeros(self.left + 1 + self.right, 1, 1, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map (B, L, W) to (B, L, W); padding counts as 0."""
        length = x.shape[1]
        if mask is not None:
            x = x * mask[..., None].to(x)
        padded = nn.functional.pad(x, (0, 0, self.left, self.right))
        # Sums of shifted copies: PyTorch's depthwise convolution is several times slower on a CPU.
        shifted = [padded[:, i : i + length] * weight.to(x) for i, weight in enumerate(self.weight)]
        return sum(shifted[1:], shifted[0])
