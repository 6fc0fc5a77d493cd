"""Conditions: from the corpus's rows to the loss, saved and loaded, and refused where a value is unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn

from diffusionlm import DiffusionLM, ModelConfig, UserError
from diffusionlm.config import nearest
from diffusionlm.data.batches import encode
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.models.backbones import Transformer
from diffusionlm.models.conditions import Condition
from diffusionlm.recipe.cross_entropy import CrossEntropy, CrossEntropyObjective

ROWS = [{"text": "the food is good", "mood": "glad"}, {"text": "the bill is high", "mood": "angry"}]


class LabelEmbedding(nn.Embedding):
    """An embedding of labels (B,)."""

    def forward(self, labels: Tensor) -> Tensor:
        """Return the features (B, C)."""
        return super().forward(labels)


@dataclass(frozen=True)
class Label(Condition):
    """A label from a column of the corpus."""

    column: str = "mood"
    labels: tuple[str, ...] = ("angry", "glad")
    size: int = 4

    def build(self) -> nn.Module:
        """Return an embedding of the labels."""
        return LabelEmbedding(len(self.labels), self.size)

    def values(self, row: Mapping[str, Any]) -> str:
        """Return the label of a row."""
        return str(row[self.column])

    def collate(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Return the indices of labels."""
        for value in values:
            if value not in self.labels:
                raise UserError(f"condition: there is no label {value!r}{nearest(str(value), self.labels)}")
        return {"labels": torch.tensor([self.labels.index(value) for value in values])}


def objective_and_rows(condition: Label) -> tuple[CrossEntropyObjective, Sequence[list[int]]]:
    """Return the objective of a small model with random weights, and its training rows."""
    splits = {"train": datasets.Dataset.from_list(ROWS)}
    texts = splits["train"]["text"][:]
    tokenizer = WordTokenizer().make(texts)
    spec = ModelConfig(dimension=8, backbone=Transformer(layers=1, width=16, heads=2), condition=condition)
    spec.check_data(splits)
    rows = spec.rows({"train": encode(texts, tokenizer)}, splits, tokenizer)["train"]
    torch.manual_seed(0)
    return CrossEntropy().build(spec.make(tokenizer, rows, 8)), rows


def test_the_loss_depends_on_the_condition(tmp_path: Path) -> None:
    objective, rows = objective_and_rows(Label())
    batch = objective.collate(rows)
    assert batch.condition is not None and batch.condition["labels"].tolist() == [1, 0]

    def loss(labels: list[int]) -> float:
        torch.manual_seed(1)
        batch["condition"] = {"labels": torch.tensor(labels)}
        return float(objective(batch)["cross_entropy"].detach())

    assert loss([1, 0]) == loss([1, 0]) != loss([0, 0])
    torch.manual_seed(1)
    objective(batch)["cross_entropy"].backward()
    assert objective.model.condition.weight.grad.abs().sum() > 0
    objective.model.save_pretrained(tmp_path)
    again, xt = DiffusionLM.load(tmp_path), torch.randn(2, 6, 8)
    assert again.settings.condition == Label()
    with torch.no_grad():
        first, second = (m.eval()(xt, torch.tensor([0.5, 0.5]), condition=batch.condition) for m in (objective.model, again))
    assert torch.equal(first.logits, second.logits)


def test_unknown_labels_and_columns_are_refused_before_training() -> None:
    with pytest.raises(UserError, match=r"^condition: there is no label 'glad'"):
        objective_and_rows(Label(labels=("angry", "calm")))
    with pytest.raises(UserError, match=r"^model\.condition: the corpus has no column 'moods'; did you mean 'mood'\?"):
        objective_and_rows(Label(column="moods"))
