"""Models of DiffuSeq's code: the network receives the original's sequence, sampling takes its steps, and targets are read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest
import torch
from originals import DIMENSION, HEADS, WORDS, alpha_bar, diffuseq_checkpoint, forward, rounded
from tiny_conditions import pairs
from tiny_runs import ROOT, TINY
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.core.objective import EndToEnd
from diffusionlm.core.sampler import DDPM
from diffusionlm.data.batches import Example, encode
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.models.source import PartialNoising
from diffusionlm.pipelines.conditioning import conditioning
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.training.convert import convert
from diffusionlm.training.run import read_config, train

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, CLS, SEP = 0, 2, 3
SEQUENCE = 16
SOURCES = ["The Vaults is a pub", "cheap", "is a family friendly place."]


def pipeline(folder: Path, **arguments: Any) -> tuple[Pipeline, dict[str, Tensor]]:
    """Convert a checkpoint with random weights; return the pipeline and the original's tensors."""
    pieces = [*SPECIAL, *dict.fromkeys(map(str.lower, WORDS))]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    file = diffuseq_checkpoint(folder / "original", len(pieces), **arguments)
    convert(file, folder / "model", str(folder / "vocab.txt"), HEADS, quiet=True)
    return Pipeline.from_pretrained(folder / "model"), torch.load(file, weights_only=True)


def original_rows(pipe: Pipeline, sources: list[str]) -> tuple[Tensor, Tensor]:
    """Return the original's ids (B, L) of sources and of targets that are all padding, and which positions are targets.

    text_datasets.py: [CLS] source [SEP] [SEP] and the target; input_mask is 0 at the former.
    """
    ids = pipe.tokenizer(sources, add_special_tokens=False)["input_ids"]
    rows = [[CLS, *row, SEP, SEP] for row in ids]
    padded = torch.tensor([row + [PAD] * (SEQUENCE - len(row)) for row in rows])
    return padded, torch.arange(SEQUENCE) >= torch.tensor([[len(row)] for row in rows])


def room_mask(target: Tensor) -> Tensor:
    """Return the mask (B, L) of the texts of our batches, which start at position 0."""
    counts = target.sum(1)
    return torch.arange(int(counts.max())) < counts[:, None]


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{}, {"predict_xstart": False}, {"noise_schedule": "cosine", "diffusion_steps": 1000}])
def test_predictions_at_targets_are_those_of_the_original_network(arguments: dict[str, Any], tmp_path: Path) -> None:
    pipe, weights = pipeline(tmp_path, **arguments)
    steps = arguments.get("diffusion_steps", 2000)
    ids, target = original_rows(pipe, SOURCES)
    mask, index = room_mask(target), torch.tensor([3, steps * 7 // 20, steps - 1])
    text = torch.randn(len(SOURCES), mask.shape[1], DIMENSION)
    x = weights["word_embedding.weight"][ids]
    x[target] = text[mask]
    expected = forward(weights, x, index, steps)
    if "predict_xstart" in arguments:
        level = alpha_bar("sqrt", steps)[index].float()[:, None, None]
        expected = (x - (1 - level).sqrt() * expected) / level.sqrt()

    settings = pipe.model.settings
    assert settings.condition == PartialNoising(max_length=10, drop=0, times="text", layout="diffuseq")
    values = settings.condition.encoded(SOURCES, pipe.tokenizer)
    given = conditioning(pipe.model, values)
    found = pipe.model(text, (index + 1).double() / steps, mask, condition=given).x0
    torch.testing.assert_close(found[mask], expected[target], rtol=1e-4 if "predict_xstart" in arguments else 0, atol=1e-5)
    alone = pipe.model(text[1:2], (index[1:2] + 1).double() / steps, mask[1:2], condition=conditioning(pipe.model, values[1:2]))
    torch.testing.assert_close(alone.x0[0, mask[1]], found[1, mask[1]], rtol=0, atol=1e-5)


def original_samples(weights: dict[str, Tensor], ids: Tensor, target: Tensor, noise: list[Tensor]) -> Tensor:
    """Return the tokens of sample_seq2seq.py: p_sample, clamped at each step, the source put back after each."""
    steps, table = len(noise) - 1, weights["word_embedding.weight"]
    level = alpha_bar("sqrt", steps)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), level[:-1]])
    beta = 1 - level / previous
    start, free = table[ids], target[..., None]
    x = torch.where(free, noise[0], start)
    for i in reversed(range(steps)):
        x0 = forward(weights, x, torch.full((len(x),), i), steps)
        x0 = table[torch.cdist(x0.flatten(0, 1), table).argmin(1)].view_as(x)
        of_x0, of_x = beta * previous.sqrt() / (1 - level), (1 - previous) * (1 - beta).sqrt() / (1 - level)
        mean = float(of_x0[i]) * x0 + float(of_x[i]) * x
        x = torch.where(free, mean + (float(beta[i].sqrt()) * noise[steps - i] if i else 0), start)
    return rounded(weights, x)


@torch.no_grad()
def test_sampling_takes_the_originals_steps_and_reads_targets_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, weights = pipeline(tmp_path, diffusion_steps=30)
    assert (pipe.sampling.steps, pipe.sampling.clamp, pipe.sampling.sampler) == (30, True, DDPM("upper"))
    ids, target = original_rows(pipe, SOURCES)
    mask = room_mask(target)
    draws = [torch.randn(*mask.shape, DIMENSION) for _ in range(31)]
    noise = []
    for draw in draws:
        full = torch.zeros(*ids.shape, DIMENSION)
        full[target] = draw[mask]
        noise.append(full)
    tokens = original_samples(weights, ids, target, noise)
    remaining = iter(draws)
    monkeypatch.setattr("diffusionlm.pipelines.diffusion.RowNoise", lambda *_: lambda _like: next(remaining))
    rows = pipe(source=SOURCES)
    assert [row.source for row in rows] == SOURCES and len(list(remaining)) == 1  # the last step adds no noise
    for row, found, free in zip(rows, tokens, target, strict=True):
        text = found[free].tolist()
        text = text[: text.index(SEP)] if SEP in text else text
        kept = [i for i in text if i not in (CLS, PAD)]
        assert row.length == len(kept)
        expected = pipe.tokenizer.convert_ids_to_tokens([i for i in kept if i >= 4 or i == 1])
        assert row.text.split() == pipe.tokenizer.backend_tokenizer.decoder.decode(expected).split()


def test_a_sample_depends_on_its_source_alone_not_on_the_batch(tmp_path: Path) -> None:
    pipe, _ = pipeline(tmp_path, diffusion_steps=20)
    rows = pipe(2, source=SOURCES)
    assert [row.text for row in pipe(2, source=SOURCES, batch_size=1)] == [row.text for row in rows]
    assert len({row.text for row in rows}) > 1


def test_the_loss_counts_the_positions_that_the_source_leaves(tmp_path: Path) -> None:
    pipe, _ = pipeline(tmp_path)
    objective = EndToEnd(pipe.model, PAD, SEQUENCE, 2000)
    value = pipe.model.settings.condition.encoded(["The Vaults"], pipe.tokenizer)[0]  # type: ignore[union-attr]
    row = Example([CLS, 7, SEP])
    row.condition = value
    batch = objective.collate([row])
    assert batch.mask.sum() == SEQUENCE
    given, _ = objective.conditioning(batch)
    assert given.prefix.tolist() == [[CLS, *value[1:-2], SEP, SEP]]
    assert batch.mask.tolist() == [[True] * (SEQUENCE - len(value)) + [False] * len(value)]
    assert all(torch.isfinite(term) for term in objective(batch).values())


def test_sources_that_leave_no_room_are_refused(tmp_path: Path) -> None:
    pipe, _ = pipeline(tmp_path)
    with pytest.raises(UserError, match=r"^source: expected at most 10 tokens \(model.condition.max_length\), got 11"):
        pipe(source="cheap " * 11)
    settings = pipe.model.settings
    assert settings.condition is not None
    with pytest.raises(
        UserError, match=r"expected at most 10, since source and text share the 16 tokens of data.max_length, got 11"
    ):
        longer = replace(settings.condition, max_length=11)  # type: ignore[type-var]
        replace(settings, condition=longer).make(pipe.tokenizer, [], SEQUENCE)
    with pytest.raises(UserError, match=r"^condition: the layout 'diffuseq' fills texts up with PAD: it needs explicit_length"):
        ModelConfig(condition=PartialNoising(layout="diffuseq"))


def test_pairs_that_do_not_fit_together_are_refused_before_training(tmp_path: Path) -> None:
    pipe, _ = pipeline(tmp_path)
    splits = {
        "train": datasets.Dataset.from_list([{"text": "cheap", "source": "cheap"}, {"text": "a " * 7, "source": "is " * 5}])
    }
    encoded = {"train": encode(splits["train"]["text"][:], pipe.tokenizer, SEQUENCE)}
    sentence = r"share 16 tokens, special ones included, but text 1 of train has 9 and its source 8"
    with pytest.raises(UserError, match=sentence):
        pipe.model.settings.rows(encoded, splits, pipe.tokenizer)


def test_the_published_recipe_trains_samples_and_is_fine_tuned(tmp_path: Path) -> None:
    training: Any = TINY["training"]
    small = {
        "data.corpus": json.dumps({"name": "pairs", "path": str(pairs(tmp_path)), "source": "source", "target": "text"}),
        "data.tokenizer": "words", "data.max_length": str(SEQUENCE), "model.condition.max_length": "10",
        "model.backbone": json.dumps({"name": "bert", "layers": 1, "width": 16, "heads": 2, "feedforward": 16}),
        "model.dimension": "8", **{f"training.{name}": json.dumps(value) for name, value in training.items()},
        "training.steps": "2", "sampling.steps": "3", "sampling.candidates": "1",
    }  # fmt: skip
    config = read_config([ROOT / "configs" / "diffuseq.yaml"], list(small.items()))
    assert train(config, tmp_path / "run", quiet=True)
    pipe = Pipeline.from_pretrained(tmp_path / "run")
    rows = pipe(2, source=["ant bee", "cat"])
    assert [row.source for row in rows] == ["ant bee"] * 2 + ["cat"] * 2
    assert pipe.model.settings.condition == config.model.condition  # type: ignore[attr-defined]
    tuned = {**small, "init_from": str(tmp_path / "run"), "training.steps": "3"}
    assert train(read_config([ROOT / "configs" / "diffuseq.yaml"], list(tuned.items())), tmp_path / "tuned", quiet=True)
