"""Texts longer than a row: trained on in pieces with context, sampled piece after piece, scored as a sum over pieces."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import restaurant_texts, tiny_config

from diffusionlm.cli import main
from diffusionlm.config import UserError, build, to_plain
from diffusionlm.data.batches import DataConfig
from diffusionlm.evaluation.likelihood import length_nats
from diffusionlm.evaluation.scoring import ScoringConfig, score
from diffusionlm.models.attributes import Label
from diffusionlm.models.causal import CausalConfig, NextToken
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.models.pieces import check_rows, text_counts
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.pieces import Piece, sample_in_pieces
from diffusionlm.recipe.cross_entropy import CrossEntropy
from diffusionlm.training.distillation.progressive import Progressive
from diffusionlm.training.run import RunConfig, prepare, save_model
from diffusionlm.training.validation import evaluate_terms

DATA = {"max_length": 14, "too_long": "split", "context": 4}
LONG = " ".join(restaurant_texts(2))
NEW = {"cooccurrence": 0}  # word vectors start at random, which is faster
MASKED = {
    "model": {
        "name": "masked",
        **NEW,
        "dimension": 8,
        "backbone": {"name": "transformer", "layers": 1, "width": 16, "heads": 2},
    },
    "objective": {"name": "masked"},
    "sampling": {"sampler": {"name": "ancestral"}, "steps": 4, "passes": 1, "sweeps": 0},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of untrained models: a diffusion and a masked one with context, and one without."""
    home = tmp_path_factory.mktemp("pieces")
    tiny = to_plain(tiny_config(home, data=DATA, model=NEW))
    kinds: dict[str, Any] = {"diffusion": {}, "masked": MASKED, "single": {"data": {**tiny["data"], "context": 0}}}
    for name, changes in kinds.items():
        config = build(RunConfig, {**tiny, **changes})
        torch.manual_seed(0)
        model, tokenizer, _, _ = prepare(config)
        save_model(model, tokenizer, config.sampling, home / name)
    return {name: home / name for name in kinds}


def opened(folder: Path) -> Any:
    return open_pipeline(folder)


@pytest.mark.parametrize("kind", ["diffusion", "masked", "causal"])
def test_context_has_no_loss(kind: str, tmp_path: Path) -> None:
    """Borders and context are given, in all families, and nothing else is."""
    causal = {"name": "causal"}
    changes = {"masked": MASKED, "causal": {"model": {**causal, "layers": 1, "width": 16, "heads": 2}, "objective": causal}}
    config = build(RunConfig, {**to_plain(tiny_config(tmp_path, data=DATA, model=NEW)), **changes.get(kind, {})})
    model, tokenizer, rows, _ = prepare(config)
    objective = config.objective.build(model)
    batch = objective.collate([row for row in rows if row[0] == tokenizer.pad_token_id][:8])
    assert batch.known is not None and bool(batch.known[:, :5].all()) and int(batch.free[:, :5].sum()) == 0
    assert not bool((batch.known & (batch.ids != tokenizer.pad_token_id))[:, 5:].any())
    torch.manual_seed(0)
    loss = sum(objective(batch).values())
    assert bool(torch.isfinite(loss)) and float(loss.detach()) > 0


def test_the_validation_loss_is_a_mean_over_new_tokens(tmp_path: Path) -> None:
    """Exactly that of a causal model on later pieces, whose context is most of their tokens, however they are batched."""
    causal = {"model": {"name": "causal", "layers": 1, "width": 16, "heads": 2}, "objective": {"name": "causal"}}
    plain = to_plain(tiny_config(tmp_path, data={**DATA, "context": 9}, model=NEW))
    config = build(RunConfig, {**plain, **causal})
    torch.manual_seed(0)
    model, tokenizer, rows, _ = prepare(config)
    objective = config.objective.build(model)
    later = [row for row in rows if row[0] == tokenizer.pad_token_id][:40]
    batch = objective.collate(later)
    with torch.no_grad():
        logits = model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits.log_softmax(-1)
    nats = -logits[:, :-1].gather(-1, batch.ids[:, 1:, None])[..., 0]
    expected = float(nats[batch.free[:, 1:]].mean())
    for tokens in (28, 100, 10_000):
        found = evaluate_terms(objective, later, tokens, torch.device("cpu"), bf16=False)
        assert found["cross_entropy"] == pytest.approx(expected, rel=1e-5)


def test_pieces_follow_each_other(folders: dict[str, Path]) -> None:
    model = opened(folders["diffusion"]).model
    seen: list[tuple[list[int], list[Piece]]] = []

    def sample(rows: list[int], pieces: list[Piece]) -> list[list[int]]:
        seen.append((rows, pieces))
        return [[*piece.given, *range(piece.tokens - 2 - len(piece.given))] for piece in pieces]

    found = sample_in_pieces(model, [12, 24, 14], [7], sample)
    assert list(map(len, found)) == [10, 22, 12] and all(ids[0] == 7 for ids in found)
    assert [rows for rows, _ in seen] == [[0, 1, 2], [1], [1]]
    assert [piece.inner for _, pieces in seen for piece in pieces] == [
        (False, False), (False, True), (False, False), (True, True), (True, False)
    ]  # fmt: skip
    assert seen[1][1][0].given == tuple(found[1][8:12]) and seen[2][1][0].tokens == 8


@pytest.mark.parametrize("kind", ["diffusion", "masked"])
def test_samples_have_the_lengths_of_complete_texts(kind: str, folders: dict[str, Path]) -> None:
    pipeline = opened(folders[kind])
    counts = text_counts(pipeline.model)
    assert len(counts) > 20 and sum(counts) == 189  # of 200 texts, the others are for validation
    rows = pipeline(6, batch_size=6)
    assert all(counts[row.length + 2] for row in rows) and max(row.length for row in rows) > 12
    assert rows[2:4] == pipeline(4, batch_size=1)[2:]
    (fixed,) = pipeline(1, length=30)
    assert fixed.length == 30 and len(fixed.text.split()) > 12


def test_the_text_to_continue_stays(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = opened(folders["diffusion"])
    assert isinstance(pipeline, Pipeline)
    ids = pipeline.tokenizer(LONG, add_special_tokens=False)["input_ids"]
    begun = str(pipeline.tokenizer.decode(ids))
    for row in pipeline.extend(begun, 2, pipeline.changed({"length": len(ids) + 5})):
        assert row.length == len(ids) + 5 and row.text.startswith(begun)
    assert main(["generate", str(folders["diffusion"]), "--continue", begun, "--length", "50", "-n", "1"]) == 0
    assert begun in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("single", "--continue The", "continue: this model was trained without context"),
        ("masked", "--continue The", "--continue: a diffusionlm-masked model continues no texts"),
        ("diffusion", "--continue The --control Length(5)", "--control: a text is continued (--continue) without it"),
        ("diffusion", "--continue zzz", "continue: the model does not know the word 'zzz' of 'zzz'"),
        ("diffusion", "--continue The --length 1", "length: expected more than the 1 tokens of the text to continue, got 1"),
        ("diffusion", "--control Length(5) --length 30", "length: expected 1 to 12 tokens"),
        ("single", "--length 30", "length: expected 1 to 12 tokens"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    kind: str, words: str, message: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(folders[kind]), *words.split()]) != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("orders", [0, 3])
def test_a_uniform_model_gives_each_word_of_a_long_text_its_probability_once(orders: int, folders: dict[str, Path]) -> None:
    """-log p(words) = words * log(number of words), however many pieces a text has."""
    pipeline = opened(folders["masked"])
    torch.nn.init.zeros_(pipeline.model.network.down.weight)
    torch.nn.init.zeros_(pipeline.model.network.down.bias)
    ((_, bound),) = score(pipeline, [LONG], ScoringConfig(orders=orders) if orders else ScoringConfig(strata=4))
    words = bound.tokens - 1
    assert words > 12 and bound.diffusion == pytest.approx(words * math.log(len(pipeline.tokenizer) - 3), rel=1e-5)
    assert bound.length == pytest.approx(length_nats(pipeline.model, words + 2))


def test_the_bound_of_a_long_text_is_the_sum_of_its_pieces(folders: dict[str, Path]) -> None:
    pipeline, options = opened(folders["diffusion"]), ScoringConfig(strata=32)
    ((_, bound),) = score(pipeline, [LONG], options)
    first = pipeline.tokenizer.decode(pipeline.tokenizer(LONG, add_special_tokens=False)["input_ids"][:12])
    ((_, begin),) = score(pipeline, [first], options)
    assert bound.tokens == 45 and 3 < bound.diffusion / begin.diffusion < 4.5  # of an untrained model: of 44 and 12 words
    with pytest.raises(UserError, match="more than this model's maximum of 12"):
        list(score(pipeline, [LONG], ScoringConfig(flow=2)))
    with pytest.raises(UserError, match="more than this model's maximum of 12"):
        list(score(opened(folders["single"]), [LONG], options))


def test_probabilities_of_lengths_sum_to_one(folders: dict[str, Path]) -> None:
    model = opened(folders["diffusion"]).model
    longest = len(text_counts(model)) - 1
    total = sum(math.exp(-length_nats(model, tokens)) for tokens in range(3, longest + 200))
    beyond = math.exp(-length_nats(model, longest + 1)) * 2  # the weight of all longer texts
    assert total == pytest.approx(1 - beyond / 200, abs=1e-9)


def test_rows_of_another_length_than_those_of_the_base_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = to_plain(tiny_config(tmp_path, data={**DATA, "max_length": 10}, model=NEW)) | {"init_from": str(folders["single"])}
    with pytest.raises(UserError, match="^data.max_length: with data.context, expected 14, the rows of .*single, .* got 10"):
        prepare(build(RunConfig, plain))


def test_models_without_given_tokens_refuse_a_context() -> None:
    data = DataConfig(context=4, too_long="split")
    refused = {
        "for a model with a condition": (ModelConfig(condition=Label(field="food")), CrossEntropy()),
        "for this model": (ModelConfig(explicit_length=False), CrossEntropy()),
        "for the objective 'progressive'": (ModelConfig(), Progressive(teacher="runs/teacher")),
    }
    for message, given in refused.items():
        with pytest.raises(UserError, match=f"data.context: expected 0 {message}"):
            check_rows(*given, data)
    check_rows(CausalConfig(), NextToken(), data)
