"""Control branches: the base to the bit before the first step, trained alone, saved alone, and left-out positions left out."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from diffusionlm.core.model import DenoisingModel
from diffusionlm.data.batches import encode
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.models.adapters import trained_share
from diffusionlm.models.attributes import Label, Number, Several
from diffusionlm.models.backbones import Backbone, Transformer
from diffusionlm.models.conditions import Condition, Conditioning
from diffusionlm.models.control_branch import ControlBranch
from diffusionlm.models.diffusion import DiffusionLM, ModelConfig
from diffusionlm.models.leave_one_out import LeaveOneOut
from diffusionlm.models.masked import MaskedConfig
from diffusionlm.models.source import Source
from diffusionlm.models.tags import Tags
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.conditioning import expected_counts
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.recipe.cross_entropy import CrossEntropy
from diffusionlm.recipe.gumbel import Gumbel
from diffusionlm.training.optimizers import ChainedOptimizer, MuonAdamW

ROWS = [
    {"text": "the food is good", "mood": "glad", "stars": "5", "tags": ["D", "N", "V", "A"]},
    {"text": "the bill is high", "mood": "angry", "stars": "1", "tags": ["D", "N", "V", "A"]},
    {"text": "it is a good pub", "mood": None, "stars": None, "tags": ["P", "V", "D", "A", "N"]},
]
SPLITS = {"train": datasets.Dataset.from_list(ROWS)}
TRANSFORMER, LEFT_OUT = Transformer(layers=3, width=16, heads=2), LeaveOneOut(layers=2, query_layers=1, width=16, heads=2)
BACKBONES = pytest.mark.parametrize("backbone", [TRANSFORMER, LEFT_OUT], ids=lambda each: each.name)
SOURCE = Source(column="text", max_length=8, dropout=0.0)
CONDITIONS: list[tuple[Condition, Any]] = [
    (Label("mood"), "glad"),
    (Number("stars"), 4),
    (Tags(), ["D", "N", "V", "P"]),
    (SOURCE, "it is high"),
    (Several((Tags(), Label("mood"), SOURCE)), {"tags": ["D", "N", "V", "P"], "source": "a pub"}),
]
EACH_CONDITION = pytest.mark.parametrize(("condition", "value"), CONDITIONS, ids=lambda each: getattr(each, "name", ""))


def perturbed(model: nn.Module, scale: float = 0.3) -> None:
    """Move all weights, as if they had been trained."""
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.data += scale * torch.randn(weight.shape, generator=generator)


def based(backbone: Backbone = TRANSFORMER, **settings: Any) -> tuple[DiffusionLM, PreTrainedTokenizerFast]:
    """Return a small model without a condition."""
    tokenizer = WordTokenizer().make(SPLITS["train"]["text"][:])
    rows = encode(SPLITS["train"]["text"][:], tokenizer).ids
    torch.manual_seed(0)
    model = ModelConfig(dimension=8, backbone=backbone, **settings).make(tokenizer, rows, 8)
    model.config.length_counts = [0, 0, 0, 0, 0, 0, 2, 1]
    perturbed(model)
    return model.train(False), tokenizer


def branched(base: DiffusionLM, condition: Condition, layers: int = 2) -> tuple[DiffusionLM, ControlBranch]:
    """Return a copy of the model with a new branch, and the adapter."""
    adapter = ControlBranch(condition, layers).fitted(SPLITS)
    return adapter.wrap(copy.deepcopy(base)), adapter


def conditioned(model: DiffusionLM, value: Any, tokenizer: PreTrainedTokenizerFast) -> Conditioning:
    condition = model.settings.condition
    assert condition is not None
    return model.condition_on(condition.collate(condition.encoded([condition.requested(value)] * 2, tokenizer)))


def logits(model: DiffusionLM, given: Conditioning | None = None, mask: Tensor | None = None) -> Tensor:
    xt = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return DenoisingModel.token_logits(model, xt, torch.tensor([0.3, 0.7]), mask, None, None, given)


@BACKBONES
@EACH_CONDITION
def test_before_the_first_step_the_model_is_its_base_to_the_bit(condition: Condition, value: Any, backbone: Backbone) -> None:
    base, tokenizer = based(backbone)
    model, _ = branched(base, condition)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    for seen in (None, mask):
        expected = logits(base, None, seen)
        assert torch.equal(logits(model, None, seen), expected)
        assert torch.equal(logits(model, conditioned(model, value, tokenizer), seen), expected)
    sampling = SamplingConfig(steps=4, passes=2, sweeps=1)
    pipe, base_pipe = (Pipeline(each, tokenizer, sampling) for each in (model, base))
    length = 4 if condition.of_positions else None
    assert pipe(6, condition=value) == [*base_pipe(6, length=length)]
    assert pipe(6) == base_pipe(6)


@BACKBONES
@EACH_CONDITION
def test_a_trained_branch_reads_its_condition(condition: Condition, value: Any, backbone: Backbone) -> None:
    base, tokenizer = based(backbone)
    model, _ = branched(base, condition)
    assert model.branch is not None and model.condition is not None
    perturbed(model.branch)
    perturbed(model.condition)
    given, null = logits(model, conditioned(model, value, tokenizer)), logits(model)
    assert not torch.allclose(given, null, atol=1e-3) and not torch.allclose(null, logits(base), atol=1e-3)
    torch.testing.assert_close(null, logits(model, conditioned(model, None, tokenizer)), rtol=0, atol=0)


def test_a_position_without_its_own_latents_reads_its_own_tag_alone() -> None:
    base, tokenizer = based(LEFT_OUT, evidence_input=False, self_conditioning=False)
    model, _ = branched(base, Tags())
    perturbed(model)
    given = conditioned(model, ["D", "N", "V", "A"], tokenizer)
    xt, without = torch.randn(2, 6, 8, requires_grad=True), torch.zeros(2, 6, dtype=torch.bool)
    features = given.features
    assert features is not None
    features.requires_grad_()
    output = model.token_logits(xt, torch.tensor([0.5, 0.5]), None, None, without, given)
    for place in range(6):
        slope, tags = torch.autograd.grad(output[0, place].square().sum(), (xt, features), retain_graph=True)
        assert slope[0, place].abs().max() == 0 and slope[0].abs().sum() > 0
        assert tags[0, place].abs().max() > 0


@BACKBONES
@EACH_CONDITION
def test_gradients_reach_the_branch_alone(condition: Condition, value: Any, backbone: Backbone) -> None:
    base, tokenizer = based(backbone)
    model, adapter = branched(base, condition)
    texts = encode(SPLITS["train"]["text"][:], tokenizer)
    rows = adapter.adapted(base.settings).rows({"train": texts}, SPLITS, tokenizer)["train"]
    objective = CrossEntropy().build(model.train())
    sum(objective(objective.collate(rows)).values()).backward()
    moved = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.abs().sum() > 0}
    assert moved and all(name.startswith("branch.projections.") or name == "branch.length" for name in moved)  # others are 0
    perturbed(model, 0.1)
    objective.zero_grad()
    sum(objective(objective.collate(rows)).values()).backward()
    reached = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if name.startswith(("branch.", "condition."))}
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained_share(model) == trained / (trained + sum(weight.numel() for weight in base.parameters()))


def test_muon_trains_the_matrices_of_the_branch() -> None:
    model, _ = branched(based(LEFT_OUT)[0], Tags())
    optimizer = MuonAdamW().build(model)
    assert isinstance(optimizer, ChainedOptimizer)
    muon, adamw = ({id(p) for group in part.param_groups for p in group["params"]} for part in optimizer.parts)
    trained = {name: id(p) for name, p in model.named_parameters() if p.requires_grad}
    assert muon | adamw == {*trained.values()} and not muon & adamw
    assert trained["branch.network.queries.0.query.weight"] in muon and trained["branch.projections.2.0.weight"] in muon
    assert trained["branch.signal.weight"] in adamw


@BACKBONES
@EACH_CONDITION
def test_a_branch_is_saved_alone_and_loads_onto_its_base(
    condition: Condition, value: Any, backbone: Backbone, tmp_path: Path
) -> None:
    base, tokenizer = based(backbone)
    model, adapter = branched(base, condition)
    for part in (model.branch, model.condition):
        assert part is not None
        perturbed(part)
    adapter.save(model, tmp_path)
    saved = load_file(tmp_path / ControlBranch.file)
    assert saved and not saved.keys() & base.state_dict().keys()
    torch.manual_seed(5)
    loaded = adapter.of(model).load(copy.deepcopy(base), tmp_path)
    drawn = torch.randn(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.randn(3))
    assert loaded.settings == model.settings and loaded.config.settings == base.config.settings
    given = (logits(each, conditioned(each, value, tokenizer)) for each in (model, loaded))
    assert torch.equal(*given)
    assert torch.equal(logits(model), logits(loaded))


def test_a_branch_copies_the_first_layers() -> None:
    base, _ = based()
    model, _ = branched(base, Label("mood"), layers=2)
    weights = model.state_dict()
    copied = {name for name in base.state_dict() if f"branch.{name}" in weights}
    assert {name.split(".")[2] for name in copied if "blocks" in name} == {"0", "1"}
    assert all(torch.equal(weights[name], weights[f"branch.{name}"]) for name in copied)
    assert not any("down" in name or name == "branch.network.norm.weight" for name in weights if name.startswith("branch."))


def test_a_fitted_schedule_leaves_the_condition_to_the_adapter() -> None:
    base, _ = based()
    model, adapter = branched(base, Label("mood"))
    model.set_schedule(Gumbel(location=1.5))
    assert model.settings.condition == adapter.condition and model.config.settings["condition"] is None
    assert model.config.settings["schedule"]["location"] == 1.5 and json.dumps(model.config.settings)


def test_lengths_of_a_source_start_from_those_of_the_training_texts() -> None:
    base, tokenizer = based()
    model, _ = branched(base, SOURCE)
    (counts, _) = expected_counts(model, conditioned(model, "a pub", tokenizer)) or ([], [])
    torch.testing.assert_close(counts, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 1.0], rtol=1e-5, atol=1e-6)
    assert model.branch is not None
    perturbed(model.branch)
    (moved, _) = expected_counts(model, conditioned(model, "a pub", tokenizer)) or ([], [])
    assert moved != counts and abs(sum(moved) - 3) < 1e-5


def test_masked_models_take_a_branch() -> None:
    tokenizer = WordTokenizer().make(SPLITS["train"]["text"][:])
    model = MaskedConfig(dimension=8, backbone=TRANSFORMER).make(tokenizer, [[2, 4, 3]], 8).train(False)
    perturbed(model)
    adapter = ControlBranch(Tags()).fitted(SPLITS)
    wrapped = adapter.wrap(copy.deepcopy(model))
    condition = adapter.condition
    given = wrapped.condition_on(condition.collate(condition.encoded([["D", "N", "V", "A"]], tokenizer)))
    ids, hidden = torch.tensor([[2, 4, 5, 6, 7, 3]]), torch.ones(1, 6, dtype=torch.bool)
    assert torch.equal(wrapped(ids, hidden, None, given), model(ids, hidden))
    assert wrapped.branch is not None
    perturbed(wrapped.branch)
    assert not torch.allclose(wrapped(ids, hidden, None, given), wrapped(ids, hidden), atol=1e-3)
