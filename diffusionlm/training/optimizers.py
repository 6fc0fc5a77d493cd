"""Optimizers: AdamW, and Muon with AdamW (Jordan et al. 2024), as components."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusionlm.config import Component, UserError

MOST_RATE = 1e6  # of learning and of decay: far more than trains, and a step with it is a number that 32 bits hold


class OptimizerConfig(Component, family="optimizer"):
    """Base of the optimizers' settings."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            values = value if isinstance(value, tuple) else (value,)
            if name.endswith(("learning_rate", "weight_decay")) and not 0 <= value < math.inf:
                raise UserError(f"{name}: expected 0 or more, got {value}")
            if name.endswith(("learning_rate", "weight_decay")) and value > MOST_RATE:
                raise UserError(f"{name}: expected at most {MOST_RATE:.0f}, got {value}")
            if name in ("betas", "momentum") and not all(0 <= share < 1 for share in values):
                raise UserError(f"{name}: expected at least 0 and below 1, got {', '.join(map(str, values))}")

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of the module's trainable weights."""
        raise NotImplementedError


@dataclass(frozen=True)
class AdamW(OptimizerConfig, name="adamw"):
    """AdamW for every weight.

    Args:
        learning_rate: the highest of the run.
        betas: decays of the means of the gradient and of its square.
        weight_decay: decoupled, relative to the learning rate.
    """

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        weights = [p for p in module.parameters() if p.requires_grad]
        return torch.optim.AdamW(weights, self.learning_rate, self.betas, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class MuonAdamW(OptimizerConfig, name="muon"):
    """Muon for the matrices of the network's layers, AdamW for everything else (Jordan et al. 2024).

    Word vectors have their own, lower learning rate: at a high rate they spread apart, which makes noisy words easy to
    tell from each other and destroys the similarity of words that can replace each other.

    Args:
        matrix_learning_rate: that of Muon.
        momentum: that of Muon.
        newton_schulz_steps: orthogonalization steps: here 3 train as well as Muon's 5, and save 1/8 of the time per step on
            small networks.
        learning_rate: that of AdamW.
        word_learning_rate: that of the word vectors.
        betas: those of AdamW, decays of the means of the gradient and of its square.
        weight_decay: of all weights, decoupled, relative to their learning rate.
    """

    matrix_learning_rate: float = 8e-3
    momentum: float = 0.95
    newton_schulz_steps: int = 3
    learning_rate: float = 8e-3
    word_learning_rate: float = 1.6e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect("at least 1", "newton_schulz_steps")

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        weights = [p for p in module.parameters() if p.requires_grad]
        in_layers = {id(p) for p in layer_matrices(module)}
        matrices = [p for p in weights if id(p) in in_layers]
        words = [p for p in word_vectors(module) if p.requires_grad]
        apart = in_layers | {id(p) for p in words}
        groups: list[dict[str, Any]] = [{"params": [p for p in weights if id(p) not in apart]}]
        groups += [{"params": words, "lr": self.word_learning_rate}] if words else []
        adamw = torch.optim.AdamW(groups, self.learning_rate, self.betas, weight_decay=self.weight_decay)
        if not matrices:
            return adamw
        momentum, steps = self.momentum, self.newton_schulz_steps
        muon = Muon(matrices, self.matrix_learning_rate, weight_decay=0.0, momentum=momentum, ns_steps=steps)
        return ChainedOptimizer(muon, adamw)


def layer_matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the matrices inside stacks of layers (``nn.ModuleList``): not those of the inputs and outputs."""
    for child in module.modules():
        if isinstance(child, nn.ModuleList):
            yield from (p for p in child.parameters() if p.ndim == 2)


def word_vectors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the weights of the ``nn.Embedding`` modules named ``embedding``."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Embedding) and name.rpartition(".")[2] == "embedding":
            yield child.weight


class Muon(torch.optim.Muon):
    """PyTorch's Muon, with matrices of one shape orthogonalized as one batch, and in fp32 where bf16 is slow.

    ``torch.optim.Muon`` always computes in bf16, which takes 40 % of a training step on a CPU without bf16 instructions.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    same_shape[matrix.shape].append(matrix)
            for (rows, columns), matrices in same_shape.items():
                directions = orthogonal(torch.stack([self._momentum(m, group) for m in matrices]), group["ns_steps"])
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, directions.unbind(), alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))
        return loss

    def _momentum(self, matrix: Tensor, group: dict[str, Any]) -> Tensor:
        """Update the momentum of a matrix; return Nesterov's momentum."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad)
        buffer: Tensor = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
        return matrix.grad.lerp(buffer, group["momentum"])


def orthogonal(matrices: Tensor, steps: int) -> Tensor:
    """Return nearly orthogonal matrices (N, rows, columns) with the singular vectors of ``matrices``.

    Runs ``steps`` steps of the quintic Newton-Schulz iteration with the coefficients of Muon (Jordan et al. 2024).
    """
    tall = matrices.size(1) > matrices.size(2)
    found = (matrices.mT if tall else matrices).to(torch.bfloat16 if has_bf16() else torch.float32)
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), found, beta=3.4445)
    return (found.mT if tall else found).to(matrices.dtype)


def has_bf16() -> bool:
    """Return whether the accelerator, or else the CPU, has bf16 instructions."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported())


class ChainedOptimizer(torch.optim.Optimizer):
    """Several optimizers that act as one: learning-rate schedulers and checkpoints see a single optimizer."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {})
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()
