"""The token losses and the estimate of a diffusion model with a large vocabulary, without a tensor of all token logits.

Both sides of the network are linear in the vocabulary: its input reads the token posterior of each noisy vector by ``up``, and
its output is the logits, by ``down``. Here these two layers are applied a few positions at a time (``recipe.chunks``).

Shapes: B batch, L positions, N = B L, D latent dimension, V words, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusionlm.core.model import DEFAULT_EVIDENCE
from diffusionlm.core.process import alpha, over_coordinates, sigma
from diffusionlm.models.backbones import InputEmbedding
from diffusionlm.recipe.chunks import in_chunks, is_large, token_losses

if TYPE_CHECKING:
    from diffusionlm.models.diffusion import DiffusionLM


def computes_in_chunks(model: DiffusionLM, positions: int) -> bool:
    """Return whether the logits of so many ``positions`` are too many, and the network's layers can be applied in chunks."""
    able = isinstance(model.network, InputEmbedding) and model.has_logits and model.step_input is None
    return able and has_plain_output(model.network) and is_large(positions, model.config.vocabulary)


def has_plain_output(network: nn.Module) -> bool:
    """Return whether a network ends with a linear layer ``down``, and is not compiled: a compiled one cannot be changed."""
    return type(getattr(network, "down", None)) is nn.Linear and getattr(network, "_compiled_call_impl", None) is None


def losses_in_chunks(model: DiffusionLM, targets: Tensor, *inputs: Any) -> Tensor:
    """Return -log p of the ``targets`` (B, L) under ``model.token_logits(*inputs)``, in nats."""
    return of_logits(model, token_losses, inputs, targets.flatten()).view(targets.shape)


def estimate_in_chunks(model: DiffusionLM, *inputs: Any) -> Tensor:
    """Return the x_0 (B, L, D) of ``model(*inputs)``."""
    words, xt = model.word_vectors(), inputs[0]
    return of_logits(model, lambda logits: logits.softmax(-1) @ words, inputs).view(xt.shape)


def of_logits(model: DiffusionLM, function: Callable[..., Tensor], inputs: tuple[Any, ...], *tensors: Tensor) -> Tensor:
    """Return ``function`` of the logits (N, V) of ``token_logits(*inputs)`` and further ``tensors`` (N, ...)."""
    given: list[Any] = [*inputs, *[None] * (6 - len(inputs))]
    xt, t, mask, previous, evidence_mask, condition = given
    size, words = model.config.vocabulary, model.word_vectors()
    with torch.autocast(xt.device.type, enabled=False):
        evidence = _scaled(model, xt, t)
    with without_output(model.network) as down:
        hidden = _hidden(model, xt, t, mask, previous, condition, evidence)
    counted = torch.ones_like(xt[..., :1])
    if evidence_mask is not None:
        counted = counted * evidence_mask[..., None]

    def part(hidden: Tensor, evidence: Tensor, counted: Tensor, *tensors: Tensor) -> Tensor:
        logits = down(hidden).float()
        with torch.autocast(xt.device.type, enabled=False):
            if model.evidence:
                logits = logits + (evidence * counted) @ words.T
            return function(logits, *tensors)

    return in_chunks(part, size, *(each.flatten(0, 1) for each in (hidden, evidence, counted)), *tensors)


def _scaled(model: DiffusionLM, xt: Tensor, t: Tensor) -> Tensor:
    """Return the vectors (B, L, D) whose products with the word vectors are the token likelihood term."""
    gamma = model.process.schedule.gamma(t)
    factor = (alpha(gamma) / sigma(gamma) ** 2).clamp(max=model.evidence or DEFAULT_EVIDENCE)
    return over_coordinates(factor, xt) * model.process.standardize(xt, gamma)


def _hidden(
    model: DiffusionLM, xt: Tensor, t: Tensor, mask: Tensor | None, previous: Tensor | None, condition: Any, evidence: Tensor
) -> Tensor:
    """Return the network's output (B, L, W) before its last layer."""
    network: Any = model.network
    if not model.reads_evidence:
        return model._output(xt, t, mask, previous, condition)
    words = model.word_vectors().detach()
    if type(network.up) is not nn.Linear or model.branch is not None or getattr(condition, "prefix", None) is not None:
        with torch.autocast(xt.device.type, enabled=False):  # other inputs are joined with the posterior
            posterior = (evidence.detach() @ words.T).softmax(-1)
        return model._output(xt, t, mask, previous, condition, posterior)
    first, last = xt.shape[-1] * (2 if model.self_conditions else 1), model.config.vocabulary
    weight = network.up.weight[:, first : first + last]

    def read(evidence: Tensor) -> Tensor:
        with torch.autocast(xt.device.type, enabled=False):
            posterior = (evidence @ words.T).softmax(-1)
        return nn.functional.linear(posterior, weight)

    posterior = in_chunks(read, last, evidence.detach().flatten(0, 1)).view(*xt.shape[:2], -1)
    with _posterior_read(network, posterior, first, last):
        return model._output(xt, t, mask, previous, condition, posterior[..., :0])


class _Up(nn.Module):
    """The layer ``up`` of a network whose inputs lack the token posterior, which it has read already."""

    def __init__(self, up: nn.Linear, read: Tensor, first: int, count: int) -> None:
        super().__init__()
        self.layer, self.read, self.first, self.behind = [up], read, first, first + count  # a list: no submodule

    def forward(self, latents: Tensor) -> Tensor:
        (up,) = self.layer
        weight = torch.cat([up.weight[:, : self.first], up.weight[:, self.behind :]], 1)
        return nn.functional.linear(latents, weight, up.bias) + self.read


@contextmanager
def _posterior_read(network: Any, read: Tensor, first: int, count: int) -> Iterator[None]:
    up = network.up
    network.up = _Up(up, read, first, count)
    try:
        yield
    finally:
        network.up = up


@contextmanager
def without_output(network: Any) -> Iterator[nn.Module]:
    """Take the last layer off a network, whose output are then its features, and return it."""
    down = network.down
    network.down = nn.Identity()
    try:
        yield down
    finally:
        network.down = down
