"""Optimizers: which weights go where, two that act as one, exact resumption."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusionlm.config import UserError
from diffusionlm.models.backbones import Bert, Transformer
from diffusionlm.training.optimizers import (
    AdamW,
    ChainedOptimizer,
    Muon,
    MuonAdamW,
    OptimizerConfig,
    layer_matrices,
    orthogonal,
)

CONFIGS: list[OptimizerConfig] = [AdamW(learning_rate=1e-2, weight_decay=0.1), MuonAdamW()]


def _module(seed: int = 0) -> nn.Module:
    """Return a small network with an embedding beside it, of which the last bias is frozen."""
    torch.manual_seed(seed)
    network = Transformer(layers=2, width=8, heads=2).build(4, 4, 6)
    module = nn.ModuleDict({"network": network, "embedding": nn.Embedding(5, 4)})
    network.get_parameter("down.bias").requires_grad_(False)
    return module


def _train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    network, embedding = module.get_submodule("network"), module.get_submodule("embedding")
    for _ in range(steps):
        ids, t = torch.randint(5, (3, 6), generator=generator), torch.rand(3, generator=generator)
        loss = (network(embedding(ids), t, t, None) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in module.state_dict().items()}


def _names(module: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name for name, p in module.named_parameters() if id(p) in held}


def test_the_layers_matrices_and_no_others() -> None:
    module = _module()
    chosen = {id(p) for p in layer_matrices(module)}
    names = {name for name, p in module.named_parameters() if id(p) in chosen}
    parts = ("query", "key", "value", "merge", "expand", "gate", "contract")
    assert names == {f"network.blocks.{layer}.{part}.weight" for layer in range(2) for part in parts}


def test_the_layers_matrices_of_bert() -> None:
    network = Bert(layers=2, width=8, heads=2, feedforward=16).build(4, 4, 6)
    chosen = {id(p) for p in layer_matrices(network)}
    names = {name for name, p in network.named_parameters() if id(p) in chosen}
    assert len(names) == 2 * 6
    assert all(name.startswith("encoder.layer.") and name.endswith(".weight") and "Norm" not in name for name in names)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_trainable_weight_is_trained_and_no_frozen_one(config: OptimizerConfig) -> None:
    module = _module()
    optimizer = config.build(module)
    assert _names(module, optimizer) == {name for name, p in module.named_parameters() if p.requires_grad}
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == sum(p.requires_grad for p in module.parameters())
    before = _weights(module)
    _train(module, optimizer, 1, seed=1)
    changed = {name for name, weight in _weights(module).items() if not torch.equal(weight, before[name])}
    assert changed == {name for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("config", CONFIGS)
def test_frozen_matrices_are_left_out(config: OptimizerConfig) -> None:
    module = _module()
    module.get_parameter("network.blocks.0.query.weight").requires_grad_(False)
    module.get_parameter("embedding.weight").requires_grad_(False)
    names = _names(module, config.build(module))
    assert names.isdisjoint({"network.blocks.0.query.weight", "embedding.weight", "network.down.bias"})
    assert "network.blocks.1.query.weight" in names


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        (AdamW, {"learning_rate": -1e-4}, "learning_rate: expected 0 or more, got -0.0001"),
        (MuonAdamW, {"word_learning_rate": math.inf}, "word_learning_rate: expected 0 or more, got inf"),
        (MuonAdamW, {"betas": (0.9, 1.0)}, "betas: expected at least 0 and below 1, got 0.9, 1.0"),
        (MuonAdamW, {"momentum": 1.5}, "momentum: expected at least 0 and below 1, got 1.5"),
        (AdamW, {"weight_decay": -1.0}, "weight_decay: expected 0 or more, got -1.0"),
        (MuonAdamW, {"newton_schulz_steps": 0}, "newton_schulz_steps: expected at least 1, got 0"),
    ],
)
def test_impossible_numbers_are_refused(kind: type[OptimizerConfig], changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        kind(**changes)


def test_adamw_is_pytorchs() -> None:
    ours, theirs = _module(), _module()
    config = AdamW(learning_rate=3e-3, betas=(0.8, 0.9), weight_decay=0.2)
    _train(ours, config.build(ours), 4, seed=1)
    trainable = [p for p in theirs.parameters() if p.requires_grad]
    _train(theirs, torch.optim.AdamW(trainable, 3e-3, (0.8, 0.9), weight_decay=0.2), 4, seed=1)
    assert all(torch.equal(weight, _weights(theirs)[name]) for name, weight in _weights(ours).items())


def test_joined_optimizers_step_as_each_alone_would() -> None:
    config = MuonAdamW(
        matrix_learning_rate=0.02,
        momentum=0.9,
        newton_schulz_steps=4,
        learning_rate=1e-3,
        betas=(0.7, 0.8),
        weight_decay=0.3,
        word_learning_rate=2e-4,
    )
    ours, theirs = _module(), _module()
    _train(ours, config.build(ours), 3, seed=1)
    matrices = list(layer_matrices(theirs))
    ids = {id(p) for p in matrices}
    vectors = list(theirs.get_submodule("embedding").parameters())
    others = [p for p in theirs.parameters() if p.requires_grad and id(p) not in ids | {id(p) for p in vectors}]
    parts: list[torch.optim.Optimizer] = [
        Muon(matrices, 0.02, weight_decay=0.0, momentum=0.9, ns_steps=4),
        torch.optim.AdamW(others, 1e-3, (0.7, 0.8), weight_decay=0.3),
        torch.optim.AdamW(vectors, 2e-4, (0.7, 0.8), weight_decay=0.3),
    ]
    network, embedding = theirs.get_submodule("network"), theirs.get_submodule("embedding")
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        words, t = torch.randint(5, (3, 6), generator=generator), torch.rand(3, generator=generator)
        for part in parts:
            part.zero_grad()
        (network(embedding(words), t, t, None) - 1).square().mean().backward()
        for part in parts:
            part.step()
    assert all(torch.equal(weight, _weights(theirs)[name]) for name, weight in _weights(ours).items())


def test_joined_learning_rates_follow_a_scheduler() -> None:
    optimizer = MuonAdamW(matrix_learning_rate=0.02, learning_rate=4e-3).build(module := _module())
    assert isinstance(optimizer, ChainedOptimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(3):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([rate / (1 + step) for rate in (0.02, 4e-3, 1.6e-3)])
        assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == rates
        _train(module, optimizer, 1, seed=step)
        scheduler.step()


def test_a_rate_of_zero_stops_both_parts() -> None:
    optimizer = MuonAdamW().build(module := _module())
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = _weights(module)
    _train(module, optimizer, 2, seed=1)
    assert all(torch.equal(weight, before[name]) for name, weight in _weights(module).items())


def test_joined_gradients_are_zeroed_together() -> None:
    optimizer = MuonAdamW().build(module := _module())
    _train(module, optimizer, 1, seed=1)
    assert any(p.grad is not None for p in module.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in module.parameters())


def test_a_closure_is_called_once() -> None:
    optimizer = MuonAdamW().build(module := _module())
    _train(module, optimizer, 1, seed=1)
    calls: list[int] = []

    def closure() -> float:
        calls.append(1)
        return 2.5

    assert optimizer.step(closure) == 2.5
    assert calls == [1]


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("config", CONFIGS)
def test_resumption_is_exact(config: OptimizerConfig) -> None:
    module = _module()
    optimizer = config.build(module)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.7**step)
    _train(module, optimizer, 3, seed=1)
    scheduler.step()
    saved = _through_a_file(
        {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    )
    _train(module, optimizer, 3, seed=2)
    resumed = _module(seed=9)
    again = config.build(resumed)
    later = torch.optim.lr_scheduler.LambdaLR(again, lambda step: 0.7**step)
    resumed.load_state_dict(saved["module"])
    again.load_state_dict(saved["optimizer"])
    later.load_state_dict(saved["scheduler"])
    assert [g["lr"] for g in again.param_groups] == [g["lr"] for g in optimizer.param_groups]
    _train(resumed, again, 3, seed=2)
    assert all(torch.equal(weight, _weights(module)[name]) for name, weight in _weights(resumed).items())
    scheduler.step()
    later.step()
    assert [g["lr"] for g in again.param_groups] == [g["lr"] for g in optimizer.param_groups]
    _train(module, optimizer, 1, seed=3)
    _train(resumed, again, 1, seed=3)
    assert all(torch.equal(weight, _weights(module)[name]) for name, weight in _weights(resumed).items())


def test_muon_steps_as_pytorchs_does_to_the_precision_of_its_bf16() -> None:
    torch.manual_seed(0)
    shapes = [(8, 8), (8, 8), (24, 8), (8, 24)]
    start = [torch.randn(shape) for shape in shapes]
    ours, theirs = [nn.Parameter(w.clone()) for w in start], [nn.Parameter(w.clone()) for w in start]
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9, "ns_steps": 4}
    optimizers = Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, first in zip(ours, theirs, start, strict=True):
        assert (one - other).norm() < 0.03 * (one - first).norm()


def test_newton_schulz_moves_singular_values_near_1_and_keeps_the_vectors() -> None:
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(2, 6, 10), full_matrices=False)
    values = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    found = orthogonal(u * values @ v, steps=5)
    seen = u.mT @ found @ v.mT
    assert (seen.diagonal(dim1=1, dim2=2) - 1).abs().max() < 0.35
    assert (seen - torch.diag_embed(seen.diagonal(dim1=1, dim2=2))).abs().max() < 0.02
    torch.testing.assert_close(orthogonal((u * values @ v).mT, steps=5), found.mT)
