"""Seam: a backbone. A small network of dilated depthwise convolutions (ByteNet, Kalchbrenner et al. 2016; ConvNeXt blocks).

A backbone's spec is a frozen dataclass whose ``build`` returns a module; the module maps

    latents (B, L, I), t and gamma (B,) or (B, L), mask (B, L) or None   ->   outputs (B, L, O)

and is independent of what the outputs are: token logits here, or x_0, eps, v. Layer i is

    h = h + W2 gelu(W1 (LayerNorm(conv_i(h)) (1 + scale(gamma)) + shift(gamma)))        conv_i with dilation 2^i

so that n layers of kernel 5 see 2^(n + 2) - 3 positions.

    python examples/convolutional.py
    PYTHONPATH=examples python -m diffusionlm train --model.backbone convolutional:Convolutional --out RUN
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tiny
import torch
from torch import Tensor, nn

from diffusionlm.config import UserError
from diffusionlm.models.backbones import Backbone, sinusoids


@dataclass(frozen=True)
class Convolutional(Backbone):
    """``layers`` residual blocks of ``width`` channels."""

    layers: int = 3
    width: int = 64

    def __post_init__(self) -> None:
        """Check the sizes."""
        if self.layers < 1 or self.width < 2 or self.width % 2:
            raise UserError(f"layers, width: expected at least 1 layer and an even width, got {self.layers}, {self.width}")

    def build(self, inputs: int, outputs: int, max_length: int) -> nn.Module:
        """Return the network; it has no limit on the length."""
        return Network(self, inputs, outputs)


class Block(nn.Module):
    """A residual block of kernel 5, modulated by the noise level."""

    def __init__(self, width: int, dilation: int) -> None:
        """Make the layers."""
        super().__init__()
        self.convolution = nn.Conv1d(width, width, 5, padding=2 * dilation, dilation=dilation, groups=width)
        self.norm = nn.LayerNorm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor, level: Tensor, keep: Tensor | float) -> Tensor:
        """Return h (B, L, W) for ``level`` (B, L, W), the encoded gamma; ``keep`` is 0 at padding."""
        scale, shift = self.modulation(level).chunk(2, -1)
        mixed = self.norm(self.convolution((h * keep).transpose(1, 2)).transpose(1, 2))
        return h + self.outer(nn.functional.gelu(self.inner(mixed * (1 + scale) + shift)))


class Network(nn.Module):
    """The blocks between two linear maps."""

    def __init__(self, spec: Convolutional, inputs: int, outputs: int) -> None:
        """Make the layers."""
        super().__init__()
        self.width = spec.width
        self.read, self.predict = nn.Linear(inputs, spec.width), nn.Linear(spec.width, outputs)
        self.blocks = nn.ModuleList(Block(spec.width, 2**i) for i in range(spec.layers))

    def forward(self, latents: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return outputs (B, L, O)."""
        gamma = gamma if gamma.dim() == 2 else gamma[:, None].expand(latents.shape[:2])
        level, keep = sinusoids(gamma, self.width), 1.0 if mask is None else mask[..., None].to(latents)
        h = self.read(latents)
        for block in self.blocks:
            h = block(h, level, keep)
        outputs: Tensor = self.predict(h)
        return outputs


def main(steps: str = "300", layers: str = "3") -> None:
    """Train a small model with this network and print samples."""
    backbone = {"name": "convolutional:Convolutional", "layers": int(layers)}
    pipe = tiny.model(model={"backbone": backbone}, training={"steps": int(steps)}, sampling={"sweeps": 0})
    network = pipe.model.network
    latents = torch.randn(1, 33, int(network.get_parameter("read.weight").shape[1]), requires_grad=True)
    outputs = network(latents, torch.ones(1), torch.ones(1))
    outputs[0, 16].sum().backward()  # which inputs does the output at the middle depend on?
    assert latents.grad is not None
    seen = int((latents.grad.abs().sum(-1) > 0).sum())
    count = sum(p.numel() for p in network.parameters())
    print(f"{type(network).__name__}: {count} parameters, an output depends on {seen} positions")
    for row in pipe(4):
        print(row.text)


if __name__ == "__main__":
    main(*sys.argv[1:])
