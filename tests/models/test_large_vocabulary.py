"""Losses and estimates in chunks are those of one call, values and gradients, for every model family and kind of input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_conditions import ANIMALS, CONDITIONS, trained
from torch import Tensor

from diffusionlm.config import build
from diffusionlm.core.objective import Objective, ObjectiveConfig
from diffusionlm.data.batches import Example
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.spec import ModelSpec
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.recipe import chunks

TEXTS = [" ".join(ANIMALS[:n] + ANIMALS[::-1][: n + 1]) for n in (1, 2, 3, 4)]
LAYERS = {"layers": 1, "width": 16, "heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "leave-one-out": {"backbone": {"name": "leave-one-out", "query_layers": 1, **LAYERS}},
    "transformer": {"backbone": {"name": "transformer", **LAYERS}, "embedding": "free"},
    "no evidence": {"backbone": {"name": "transformer", **LAYERS}, "evidence": 0.0, "self_conditioning": False},
    "no input": {"backbone": {"name": "transformer", **LAYERS}, "evidence_input": False},
    "masked": {"name": "masked", "backbone": {"name": "transformer", **LAYERS}},
    "causal": {"name": "causal", **LAYERS},
}


def made(name: str, texts: Sequence[str] = TEXTS) -> tuple[Objective, list[list[int]]]:
    tokenizer = WordTokenizer().make(texts, 12)
    rows = tokenizer([*texts])["input_ids"]
    plain = {"name": "diffusion", "dimension": 6, **MODELS[name]}
    if name == "causal":
        del plain["dimension"]
    model = build(ModelSpec, plain).make(tokenizer, rows, 12)
    objective = {"masked": "masked", "causal": "causal"}.get(name, "cross-entropy")
    return build(ObjectiveConfig, objective).build(model), rows


def terms_and_gradients(objective: Objective, rows: list[Any]) -> dict[str, Tensor]:
    torch.manual_seed(3)
    objective.zero_grad()
    terms = objective(objective.collate(rows))
    torch.stack([*terms.values()]).sum().backward()
    gradients = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    return {**{name: term.detach() for name, term in terms.items()}, **gradients}


def check_same(objective: Objective, rows: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for parameter in objective.parameters():  # layers that start at 0 would hide an error
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    expected = terms_and_gradients(objective, rows)
    monkeypatch.setattr(chunks, "MOST", 0)
    monkeypatch.setattr(chunks, "CHUNK", 3 * objective.model.config.vocab_size)
    found = terms_and_gradients(objective, rows)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("name", MODELS)
def test_the_objectives_terms_and_gradients_are_those_of_one_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_same(*made(name), monkeypatch)


@pytest.mark.parametrize("name", ["several", "masked"])
def test_conditions_are_received_in_chunks_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = {"masked": "masked"}.get(name, "cross-entropy")
    run = trained(tmp_path, name)

    pipe = open_pipeline(run)
    condition, rows = pipe.model.settings.condition, [Example(ids) for ids in pipe.tokenizer(TEXTS[:2])["input_ids"]]
    for row, text in zip(rows, TEXTS[:2], strict=True):
        value = {"kind": "low", "source": text} if name == "several" else text
        (row.condition,) = condition.encoded([condition.requested(value)], pipe.tokenizer)
    assert CONDITIONS[name] is not None
    pipe.model.train(False)
    check_same(build(ObjectiveConfig, family).build(pipe.model), rows, monkeypatch)


def test_the_estimate_is_that_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, rows = made("leave-one-out")
    model: DiffusionLM = objective.model
    ids = torch.tensor([rows[2], rows[2]])
    xt, t = torch.randn(*ids.shape, 6), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        expected = model(xt, t).x0
        monkeypatch.setattr(chunks, "MOST", 0)
        torch.testing.assert_close(model.estimate(xt, t), expected, rtol=1e-4, atol=1e-5)


def test_only_a_few_logits_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of more than one chunk's logits is saved for the backward pass."""
    objective, rows = made("leave-one-out", [*TEXTS, " ".join(f"word{n}" for n in range(9))])
    size = objective.model.config.vocab_size
    assert size == 17  # unlike any other dimension
    monkeypatch.setattr(chunks, "MOST", 0)
    monkeypatch.setattr(chunks, "CHUNK", 2 * size)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape[-1:] == (size,):
            saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.stack([*objective(objective.collate(rows)).values()]).sum()
    assert max(saved, default=0) <= 2 * size
