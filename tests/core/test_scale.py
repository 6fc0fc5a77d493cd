"""A process times a constant is the same model: every loss and every bound is that of the variance-preserving process."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from tiny_runs import ROOT, restaurant_texts
from torch import Tensor

from diffusionlm.core.objective import Batch
from diffusionlm.core.process import Process, VariancePreserving
from diffusionlm.core.schedule import NoiseSchedule, Sqrt
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.evaluation.likelihood import bound
from diffusionlm.models.backbones import Transformer
from diffusionlm.models.diffusion import DiffusionLM, ModelConfig
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.recipe.cross_entropy import CrossEntropy
from diffusionlm.recipe.regression import Regression


@dataclass(frozen=True)
class EightFold(Process):
    schedule: NoiseSchedule

    def alpha_sigma(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = VariancePreserving(self.schedule).alpha_sigma(gamma)
        return 8 * alpha, 8 * sigma


@pytest.mark.parametrize("orders", [0, 3])
def test_the_bounds(orders: int) -> None:
    pipe = Pipeline.from_pretrained(ROOT / "tests" / "golden" / "format-1")
    rows = [pipe.tokenizer("The Golden Lion is a cheap pub near the bridge.")["input_ids"]]
    (one,) = bound(pipe.model, rows, strata=16, orders=orders)
    pipe.model.process = EightFold(pipe.model.process.schedule)
    (other,) = bound(pipe.model, rows, strata=16, orders=orders)
    assert other.nats == pytest.approx(one.nats, rel=1e-4)
    assert other.diffusion == pytest.approx(one.diffusion, rel=1e-4)


def published_model(prediction: str) -> tuple[DiffusionLM, list[list[int]]]:
    texts = restaurant_texts(8)
    tokenizer = WordTokenizer().make(texts)
    spec = ModelConfig(
        dimension=8, prediction=prediction, schedule=Sqrt(T=50), embedding="free", explicit_length=False, cooccurrence=0,  # type: ignore[arg-type]
        self_conditioning=False, evidence=0, evidence_input=False, learned_variance=True,
        backbone=Transformer(layers=1, width=16, heads=2, dropout=0),
    )  # fmt: skip
    rows = [tokenizer(text)["input_ids"] for text in texts]
    return spec.make(tokenizer, rows, 48), rows


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
@pytest.mark.parametrize("loss", ["l2", "vlb"])
def test_the_published_objective(prediction: str, loss: str) -> None:
    model, rows = published_model(prediction)
    objective = Regression(loss=loss, variance="learned").build(model)  # type: ignore[arg-type]
    batch = objective.collate(rows)
    one = terms(objective, batch)
    model.process = EightFold(model.process.schedule)
    assert terms(objective, batch) == pytest.approx(one, rel=1e-3)


def test_the_bound_of_the_published_recipe() -> None:
    model, rows = published_model("x0")
    model.config.length_counts = [1] * 48
    found = []
    processes: list[Process] = [model.process, EightFold(model.process.schedule)]
    for process in processes:
        model.process = process
        found.append([each.nats for each in bound(model, rows[:2], strata=16)])
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_the_default_objective_with_given_tokens() -> None:
    texts = restaurant_texts(8)
    tokenizer = WordTokenizer().make(texts)
    rows = [tokenizer(text)["input_ids"] for text in texts]
    model = ModelConfig(dimension=8, backbone=Transformer(layers=1, width=16, heads=2, dropout=0)).make(tokenizer, rows, 48)
    objective = CrossEntropy().build(model)
    batch = objective.collate(rows)
    batch["known"] = torch.rand(batch.ids.shape) < 0.3
    one = terms(objective, batch)
    model.process = EightFold(model.process.schedule)
    assert terms(objective, batch) == pytest.approx(one, rel=1e-4)


def terms(objective: torch.nn.Module, batch: Batch) -> dict[str, float]:
    torch.manual_seed(3)
    objective.eval()
    with torch.no_grad():
        return {name: float(term) for name, term in objective(batch).items()}
