"""The networks: the paper's size to the weight, masks, noise levels per text and per position."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from diffusionlm.config import UserError, to_plain
from diffusionlm.core.schedule import Sqrt
from diffusionlm.models.backbones import (
    Backbone,
    Bert,
    BertNetwork,
    Block,
    DepthwiseConv,
    Transformer,
    TransformerNetwork,
    sinusoids,
)
from diffusionlm.models.diffusion import DiffusionLM, DiffusionLMConfig, ModelConfig
from diffusionlm.models.leave_one_out import LeaveOneOut

SPECS: list[Backbone] = [
    Transformer(layers=2, width=16, heads=2),
    Transformer(layers=2, width=16, heads=2, gated=False),
    LeaveOneOut(layers=1, query_layers=2, width=16, heads=2),
    Bert(layers=2, width=16, heads=2, feedforward=32),
]
INPUTS, OUTPUTS, LONGEST = 6, 5, 9


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _network(spec: Backbone) -> nn.Module:
    network = spec.build(INPUTS, OUTPUTS, LONGEST).eval().requires_grad_(False)
    for weight in network.parameters():  # away from the defaults, in which a small network hardly mixes positions
        nn.init.normal_(weight, std=0.5)
    return network


def _inputs(texts: int = 2, length: int = LONGEST) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.linspace(0.2, 0.9, texts)
    return torch.randn(texts, length, INPUTS), t, 8 * t - 3


def test_the_papers_network_to_the_weight() -> None:
    settings = ModelConfig(
        dimension=16,
        backbone=Bert(),
        schedule=Sqrt(),
        prediction="x0",
        embedding="free",
        self_conditioning=False,
        explicit_length=False,
    )
    with torch.device("meta"):
        model = DiffusionLM(DiffusionLMConfig(settings=to_plain(settings), vocabulary=821))
    assert _count(model) == 87_129_749
    network = model.network
    assert isinstance(network, BertNetwork)
    assert [_count(layer) for layer in network.encoder.layer] == [7_087_872] * 12


def test_a_gated_perceptron_multiplies_two_readings() -> None:
    block = Block(Transformer(width=12, heads=2, neighbours=0)).requires_grad_(False)
    assert block.gate is not None
    block.merge.weight.zero_()  # leaves attention out
    x = torch.randn(2, 5, 12)
    normed = x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()
    read, gate = normed @ block.expand.weight.T, normed @ block.gate.weight.T
    activated = read * (1 + torch.erf(read / math.sqrt(2))) / 2
    torch.testing.assert_close(block(x, None, None), x + (activated * gate) @ block.contract.weight.T)


@torch.no_grad()
def test_the_stream_starts_at_size_one_however_loud_the_input() -> None:
    latents, t, gamma = 100 * torch.randn(2, 5, INPUTS), torch.ones(2), torch.ones(2)
    seen: list[Tensor] = []
    for normed in (True, False):
        network = TransformerNetwork(Transformer(layers=1, width=12, heads=2, normed_input=normed), INPUTS, 12, LONGEST)
        network.norm_input.register_forward_hook(lambda _module, _given, out: seen.append(out.square().mean(-1).sqrt()))
        network(latents, t, gamma, None)
    torch.testing.assert_close(seen[0], torch.ones(2, 5))
    assert float(seen[1].min()) > 2


def test_gates_cost_few_weights_more() -> None:
    plain, gated = (_count(Block(Transformer(width=192, heads=6, gated=gated))) for gated in (False, True))
    assert plain == gated  # 192 x 4 = 768 hidden coordinates, or 512 twice


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("length", [1, 4, LONGEST])
def test_shapes(spec: Backbone, length: int) -> None:
    latents, t, gamma = _inputs(3, length)
    assert _network(spec)(latents, t, gamma, None).shape == (3, length, OUTPUTS)


@pytest.mark.parametrize("spec", SPECS)
def test_padding_changes_nothing_at_real_positions(spec: Backbone) -> None:
    network, (latents, t, gamma) = _network(spec), _inputs()
    mask = torch.arange(LONGEST) < torch.tensor([[5], [LONGEST]])
    padded = network(latents, t, gamma, mask)
    alone = network(latents[:1, :5], t[:1], gamma[:1], None)
    torch.testing.assert_close(padded[:1, :5], alone, rtol=1e-5, atol=1e-5)
    other = torch.where(mask[..., None], latents, 100.0)
    torch.testing.assert_close(network(other, t, gamma, mask)[mask], padded[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_without_a_mask_every_position_is_real(spec: Backbone) -> None:
    network, (latents, t, gamma) = _network(spec), _inputs()
    everywhere = torch.ones(2, LONGEST, dtype=torch.bool)
    torch.testing.assert_close(network(latents, t, gamma, everywhere), network(latents, t, gamma, None))


@pytest.mark.parametrize("spec", SPECS)
def test_every_position_sees_every_other_and_itself_unless_left_out(spec: Backbone) -> None:
    network, (latents, t, gamma) = _network(spec), _inputs(1)
    t, gamma = t[:, None].repeat(1, LONGEST), gamma[:, None].repeat(1, LONGEST)
    before = network(latents, t, gamma, None)
    for position in range(LONGEST):
        changed, other_t, other_gamma = latents.clone(), t.clone(), gamma.clone()
        changed[0, position] += 1
        other_t[0, position], other_gamma[0, position] = 0.9, 4.0
        moved = (network(changed, other_t, other_gamma, None) - before)[0].abs().amax(-1)
        if spec.excludes_self:
            assert float(moved[position]) == 0
            moved = torch.cat([moved[:position], moved[position + 1 :]])
        assert bool((moved > 1e-6).all())


@pytest.mark.parametrize("spec", SPECS)
def test_levels_per_position_equal_levels_per_text(spec: Backbone) -> None:
    network, (latents, t, gamma) = _network(spec), _inputs()
    wide_t, wide_gamma = t[:, None].expand(2, LONGEST), gamma[:, None].expand(2, LONGEST)
    torch.testing.assert_close(network(latents, wide_t, wide_gamma, None), network(latents, t, gamma, None))


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not spec.excludes_self])
def test_a_level_matters_at_its_own_position(spec: Backbone) -> None:
    network, (latents, t, gamma) = _network(spec), _inputs(1)
    t, gamma = t[:, None].repeat(1, LONGEST), gamma[:, None].repeat(1, LONGEST)
    before = network(latents, t, gamma, None)
    t[0, 3], gamma[0, 3] = 0.8, 5.0
    assert float((network(latents, t, gamma, None) - before)[0, 3].abs().max()) > 1e-3


@pytest.mark.parametrize(("spec", "reads_time"), [(SPECS[0], False), (SPECS[-1], True)])
def test_what_tells_the_noise_level(spec: Backbone, reads_time: bool) -> None:
    network, (latents, t, gamma) = _network(spec), _inputs()
    before = network(latents, t, gamma, None)
    assert torch.equal(network(latents, t / 2, gamma, None), before) != reads_time
    assert torch.equal(network(latents, t, gamma / 2, None), before) == reads_time


def test_the_transformer_receives_the_length_of_the_text() -> None:
    network = _network(SPECS[0])
    latents, t, gamma = torch.zeros(1, LONGEST, INPUTS), torch.ones(1), torch.ones(1)
    short, long = (network(latents[:, :length], t, gamma, None)[0, 0] for length in (4, 5))
    assert float((short - long).abs().max()) > 1e-3


def test_bert_reads_texts_longer_than_its_512_positions() -> None:
    network = Bert(layers=1, width=8, heads=1, feedforward=8).build(2, 2, 600).eval()
    assert network(torch.randn(1, 600, 2), torch.ones(1), torch.ones(1), None).shape == (1, 600, 2)


@pytest.mark.parametrize(("side", "seen"), [("both", [1, 2, 3, 4, 5]), ("left", [3, 4, 5]), ("right", [1, 2, 3])])
def test_neighbours_on_one_side(side: Literal["both", "left", "right"], seen: list[int]) -> None:
    neighbours = DepthwiseConv(2, 1, side).requires_grad_(False)
    neighbours.weight.fill_(1.0)
    at_three = torch.zeros(1, 7, 1)
    at_three[0, 3] = 1
    assert neighbours(at_three, None)[0, :, 0].nonzero().flatten().tolist() == seen


@pytest.mark.parametrize("kind", [Bert, Transformer, LeaveOneOut])
def test_heads_divide_the_width(kind: type[Bert | Transformer | LeaveOneOut]) -> None:
    with pytest.raises(UserError, match=r"^heads: expected a divisor of the width 10, got 4$"):
        kind(width=10, heads=4)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_sinusoids(shape: tuple[int, ...]) -> None:
    x = 100 * torch.rand(shape, dtype=torch.float64)
    encoded = sinusoids(x, 8)
    assert (encoded.shape, encoded.dtype) == ((*shape, 8), torch.float32)
    torch.testing.assert_close(encoded[..., :4] ** 2 + encoded[..., 4:] ** 2, torch.ones(*shape, 4))
    for i in range(4):
        angle = x.float() * math.exp(-math.log(10_000) * i / 4)
        torch.testing.assert_close(encoded[..., i], angle.cos(), rtol=0, atol=1e-5)
        torch.testing.assert_close(encoded[..., 4 + i], angle.sin(), rtol=0, atol=1e-5)
