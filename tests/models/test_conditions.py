"""Conditions: from the corpus's rows to the network, dropped in training, saved and loaded, and refused where impossible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

from diffusionlm import DiffusionLM, ModelConfig, UserError
from diffusionlm.config import build, to_plain
from diffusionlm.data.batches import encode
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.models.attributes import Label, Number, Several
from diffusionlm.models.backbones import Bert, Transformer
from diffusionlm.models.conditions import Condition, Conditioning, behind, joined, kept
from diffusionlm.models.leave_one_out import LeaveOneOut
from diffusionlm.models.masked import MaskedConfig
from diffusionlm.models.source import PartialNoising, Source, linearised
from diffusionlm.recipe.cross_entropy import CrossEntropy, CrossEntropyObjective
from diffusionlm.training.run import RunConfig

ROWS = [
    {"text": "the food is good", "mood": "glad", "stars": "5", "source": "good food"},
    {"text": "the bill is high", "mood": "angry", "stars": "1", "source": "bill : high !"},
    {"text": "it is a pub", "mood": None, "stars": None, "source": "pub"},
]
CORPUS = datasets.Dataset.from_list(ROWS)
TRANSFORMER = Transformer(layers=2, width=16, heads=2)
LEFT_OUT = LeaveOneOut(layers=1, query_layers=1, width=16, heads=2)
SOURCES: list[Condition] = [Source(max_length=8, dropout=0.0), PartialNoising(max_length=8)]


def made(condition: Condition, **settings: Any) -> tuple[CrossEntropyObjective, list[Any]]:
    """Return the objective of a small model with random weights, and its training rows."""
    splits = {"train": CORPUS}
    spec = ModelConfig(dimension=8, **{"backbone": TRANSFORMER, **settings}, condition=condition).fitted(splits)
    tokenizer = WordTokenizer().make(spec.tokenizer_texts(CORPUS))
    rows = list(spec.rows({"train": encode(CORPUS["text"][:], tokenizer)}, splits, tokenizer)["train"])
    torch.manual_seed(0)
    objective = CrossEntropy().build(spec.make(tokenizer, rows, 8))
    for parameter in objective.model.parameters():  # an untrained network's last layer is nearly 0
        parameter.data += 0.3 * torch.randn_like(parameter)
    return objective, rows


def logits(model: DiffusionLM, given: Conditioning | None, mask: Tensor | None = None, count: int = 2) -> Tensor:
    """Return the token logits at fixed noisy vectors."""
    torch.manual_seed(3)
    xt = torch.randn(6, 8).expand(count, -1, -1)
    with torch.no_grad():
        found: Tensor = model.train(False)(xt, torch.full((count,), 0.5), mask, condition=given).logits
    return found


def conditioned(model: DiffusionLM, values: list[Any]) -> Conditioning:
    """Return the conditioning on encoded values."""
    condition = model.settings.condition
    assert condition is not None
    model.train(False)
    return model.condition_on(condition.collate(values))


@pytest.mark.parametrize("backbone", [TRANSFORMER, LEFT_OUT])
@pytest.mark.parametrize("condition", [*SOURCES, Label("mood"), Number("stars"), Several((Label("mood"), SOURCES[0]))])
def test_the_loss_and_the_logits_depend_on_the_condition(condition: Condition, backbone: Any, tmp_path: Path) -> None:
    objective, rows = made(condition, backbone=backbone)
    model = objective.model.eval()

    def loss(values: list[Any]) -> float:
        batch = objective.collate(rows)
        batch["condition"] = model.settings.condition.collate(values)
        torch.manual_seed(1)
        return float(objective(batch)["cross_entropy"].detach())

    values = [row.condition for row in rows]
    assert loss(values) == loss(values) != loss([values[1], values[0], values[2]])
    model.save_pretrained(tmp_path)
    again = DiffusionLM.load(tmp_path)
    assert again.settings == model.settings
    first, second = (logits(each, conditioned(each, values[:2])) for each in (model, again))
    assert torch.equal(first, second) and not torch.equal(first[0], first[1])


@pytest.mark.parametrize("backbone", [TRANSFORMER, LEFT_OUT])
@pytest.mark.parametrize("condition", SOURCES)
def test_a_sample_depends_on_its_own_source_alone(condition: Condition, backbone: Any) -> None:
    objective, rows = made(condition, backbone=backbone)
    short, long = rows[2].condition, rows[1].condition
    alone, beside = (logits(objective.model, conditioned(objective.model, [short, other])) for other in (short, long))
    torch.testing.assert_close(alone[0], beside[0], rtol=1e-5, atol=1e-5)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    padded = logits(objective.model, conditioned(objective.model, [short, long]), mask)
    torch.testing.assert_close(padded[0], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("condition", [*SOURCES, Label("mood"), Number("stars")])
def test_no_value_is_the_null_condition(condition: Condition) -> None:
    objective, rows = made(condition)
    null = logits(objective.model, conditioned(objective.model, [None, None]))
    torch.testing.assert_close(logits(objective.model, None), null, rtol=0, atol=0)
    assert not torch.equal(null[0], logits(objective.model, conditioned(objective.model, [rows[0].condition] * 2))[0])


@pytest.mark.parametrize("condition", SOURCES)
def test_rows_of_a_conditioning_are_those_of_their_values(condition: Condition) -> None:
    objective, rows = made(condition)
    both = conditioned(objective.model, [rows[0].condition, rows[1].condition])
    swapped = logits(objective.model, both.rows(torch.tensor([1, 0])))
    torch.testing.assert_close(swapped, logits(objective.model, both).flip(0), rtol=1e-5, atol=1e-5)


def test_left_out_positions_stay_left_out_beside_a_source() -> None:
    objective, rows = made(SOURCES[0], backbone=LEFT_OUT, evidence_input=False, self_conditioning=False)
    model = objective.model.eval()
    given = conditioned(model, [rows[0].condition])
    xt = torch.randn(1, 6, 8, requires_grad=True)
    without = torch.zeros(1, 6, dtype=torch.bool)  # of the token likelihood term
    output = model.token_logits(xt, torch.tensor([0.5]), None, None, without, given)
    for place in range(6):
        (slope,) = torch.autograd.grad(output[0, place].square().sum(), xt, retain_graph=True)
        assert slope[0, place].abs().max() == 0 and slope.abs().sum() > 0


def test_a_prefix_is_joined_without_a_gap() -> None:
    source, target = torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([[7, 8], [9, 6]])
    tokens = torch.tensor([3, 1])
    joint = joined(source, target, tokens)
    assert joint[0].tolist() == [1, 2, 3, 7, 8] and joint[1, :3].tolist() == [4, 9, 6]
    assert torch.equal(behind(joint, tokens, 2), target)
    vectors = torch.randn(2, 5, 4)
    both = joined(vectors[:, :3], vectors[:, 3:], tokens)
    torch.testing.assert_close(both[1, 1:3], vectors[1, 3:])


def test_a_prefix_is_what_the_network_reads_before_the_text() -> None:
    """The same logits as for one sequence of clean and noisy vectors, whose noise levels differ by position."""
    objective, rows = made(PartialNoising(max_length=8), self_conditioning=False)
    model, ids = objective.model.eval(), rows[0].condition
    given = conditioned(model, [ids])
    words = model.encode(torch.tensor([ids]))
    torch.manual_seed(3)
    xt = torch.randn(1, 6, 8)
    levels = torch.cat([torch.zeros(1, len(ids)), torch.full((1, 6), 0.5)], 1)
    with torch.no_grad():
        alone = model(xt, torch.tensor([0.5]), condition=given).logits
        condition, model.condition = model.condition, None
        joint = model(torch.cat([words, xt], 1), levels).logits[:, len(ids) :]
        model.condition = condition
    torch.testing.assert_close(alone, joint, rtol=1e-3, atol=1e-3)  # the evidence of a clean vector is nearly one-hot


def test_the_network_may_receive_the_texts_time_at_the_source() -> None:
    """As DiffuSeq's code has it; with one time for all positions, the source's is no other input."""
    settings: dict[str, Any] = {"backbone": Bert(layers=1, width=16, heads=2, feedforward=16), "self_conditioning": False}
    found = []
    for times in ("clean", "text"):
        objective, rows = made(PartialNoising(max_length=8, times=times), **settings)
        found.append(logits(objective.model, conditioned(objective.model, [rows[0].condition] * 2)))
    assert not torch.equal(*found)


def test_conditions_are_dropped_in_training_alone() -> None:
    objective, rows = made(Source(drop=0.25, max_length=8, dropout=0.0))
    encoder = objective.model.condition
    assert encoder is not None
    torch.manual_seed(0)
    assert 0.2 < 1 - float(kept(encoder.train(), 4000, 0.25, torch.device("cpu")).float().mean()) < 0.3
    assert bool(kept(encoder.eval(), 4000, 0.25, torch.device("cpu")).all())
    value = rows[0].condition
    seen = encoder.train()(**Source().collate([value] * 1000)).seen.any(1)
    assert 0.7 < float(seen.float().mean()) < 0.8


def test_values_of_several_are_dropped_each_on_its_own_and_all_together() -> None:
    """With shares of .2 and .3, .2 of the texts lose both, and .8 lose each on its own: both, one or none."""
    several = Several((Label("mood", drop=0.2), Number("stars", drop=0.3))).fitted(CORPUS)
    module, tensors = several.build(None), several.collate([{"mood": "glad", "stars": 4}] * 20000)  # type: ignore[arg-type]
    torch.manual_seed(0)
    features = module.train()(**tensors).features
    mood, stars = features[:, :2].any(1), features[:, 2:].any(1)
    shares = [float((a & b).float().mean()) for a in (mood, ~mood) for b in (stars, ~stars)]
    assert shares == pytest.approx([0.8 * 0.8 * 0.7, 0.8 * 0.8 * 0.3, 0.8 * 0.2 * 0.7, 0.2 + 0.8 * 0.2 * 0.3], abs=0.015)
    assert bool(module.eval()(**tensors).features[:, [0, 2]].any(1).all())


def test_a_source_is_dropped_together_with_a_label() -> None:
    """Neither is dropped where a label never is: its texts are then never without condition."""
    both = {share: Several((Label("mood", drop=share), Source(max_length=8, drop=0.3, dropout=0.0))) for share in (0.3, 0.0)}
    for share, several in both.items():
        objective, rows = made(several)
        module = objective.model.condition
        assert module is not None
        given = module.train()(**objective.model.settings.condition.collate([rows[0].condition] * 4000))
        label, seen = given.features.any(1), given.seen.any(1)
        expected = 0.3 + 0.7 * 0.3 * 0.3 if share else 0.0
        assert float((~label & ~seen).float().mean()) == pytest.approx(expected, abs=0.03)
        assert float((label & ~seen).float().mean()) > 0.1  # the source on its own


def test_every_condition_collates_none_to_zeros_or_is_refused_in_several() -> None:
    class Marked(Label):
        def collate(self, values: Any) -> dict[str, Tensor]:
            return {name: tensor - 1 for name, tensor in super().collate(values).items()}

    for part in (*SOURCES, Label("mood"), Number("stars")):
        Several((part,)).fitted(CORPUS)
    with pytest.raises(UserError, match="parts: all values are dropped together as tensors of 0, but 'mood' collates None"):
        Several((Marked("mood"),)).fitted(CORPUS)
    Several((Marked("mood", drop=0.0),)).fitted(CORPUS)


def test_the_length_is_predicted_from_the_source() -> None:
    objective, rows = made(Source(max_length=8, drop=0.0, dropout=0.0))
    batch = objective.collate(rows)
    lengths = batch.mask.sum(1)
    batch["mask"] = torch.arange(batch.ids.shape[1]) < torch.tensor([3, 4, 5])[:, None]
    optimizer = torch.optim.Adam(objective.model.condition.parameters(), 0.01)
    for _ in range(60):
        terms = objective(batch)
        optimizer.zero_grad()
        terms["length"].backward()
        optimizer.step()
    given = conditioned(objective.model, [row.condition for row in rows])
    assert given.length_logits is not None and given.length_logits.argmax(1).tolist() == [3, 4, 5] != lengths.tolist()


def test_masked_models_take_the_same_conditions() -> None:
    splits = {"train": CORPUS}
    for condition in SOURCES:
        spec = MaskedConfig(dimension=8, backbone=TRANSFORMER, condition=condition).fitted(splits)
        tokenizer = WordTokenizer().make(spec.tokenizer_texts(CORPUS))
        rows: list[Any] = list(spec.rows({"train": encode(CORPUS["text"][:], tokenizer)}, splits, tokenizer)["train"])
        model = spec.make(tokenizer, rows, 8).train(False)
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        given = model.condition_on(condition.collate([rows[0].condition, rows[1].condition]))
        ids = torch.tensor([rows[0], rows[0]])
        with torch.no_grad():
            found = model(ids, torch.ones_like(ids, dtype=torch.bool), None, given)
        assert not torch.equal(found[0], found[1])


def test_values_are_read_from_columns_and_attributes() -> None:
    rows = datasets.Dataset.from_list([{"text": "a", "attributes": {"food": "thai", "area": "centre"}}])
    assert (
        Source(column="attributes").values(rows)
        == ["food[thai], area[centre]"]
        == [linearised({"food": "thai", "area": "centre"})]
    )
    assert Label("mood").fitted(CORPUS).labels == ("angry", "glad")
    assert Label("mood").fitted(CORPUS).values(CORPUS) == ["glad", "angry", None]
    fitted = Number("stars").fitted(CORPUS)
    assert (fitted.mean, fitted.deviation) == (3, 2) and fitted.values(CORPUS) == [5, 1, None]
    assert fitted.collate([5.0, None])["number"].tolist() == [1, 0]
    assert Number("stars").describes(fitted) and not Number("mood").describes(fitted)


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        (Label("moods"), "model.condition: the corpus has no column 'moods'; did you mean 'mood'?"),
        (Label("mood", ("glad", "sad")), "model.condition: no training text has mood 'sad'"),
        (Label("source", ("pub",)), None),
        (Number("mood"), "condition: mood: expected a number, got 'glad'"),
        (Source(column="mood"), "model.condition: expected a source text in column 'mood', got None in text 3, 'it is a pub'"),
        (Source(max_length=2), "source: expected at most 2 tokens (model.condition.max_length), got 4: 'bill : high !'"),
    ],
)
def test_impossible_values_are_refused_before_training(condition: Condition, sentence: str | None) -> None:
    if sentence is None:
        made(condition)
        return
    with pytest.raises(UserError) as caught:
        made(condition)
    assert str(caught.value).startswith(sentence)


def test_a_backbone_that_attends_to_no_source_is_refused() -> None:
    with pytest.raises(UserError, match=r"^condition: the backbone 'bert' attends to no source; take 'transformer'"):
        made(Source(), backbone=Bert(layers=1, width=16, heads=2, feedforward=16))


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ((), "parts: expected conditions of different names, got none"),
        ((Label("mood"), Label("mood")), "parts: expected conditions of different names, got mood, mood"),
        ((Source(), PartialNoising()), "parts: expected conditions of different names, got source, source"),
    ],
)
def test_conditions_that_do_not_go_together(parts: tuple[Condition, ...], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        Several(parts)
    assert str(caught.value).startswith(sentence)


def test_a_column_of_sources_is_read_by_an_encoder_unless_the_model_says_how() -> None:
    def condition(**plain: Any) -> Any:
        config = build(RunConfig, {"data": {"source": "src"}, **plain})
        assert build(RunConfig, to_plain(config)) == config
        return config.model.condition  # type: ignore[attr-defined]

    assert condition() == Source(column="src")
    assert condition(model={"name": "masked"}, objective="masked") == Source(column="src")
    assert condition(model={"condition": "partial-noising"}) == PartialNoising(column="src")
    with pytest.raises(UserError, match=r"data\.source: expected a condition on the column 'src', got Label"):
        condition(model={"condition": {"name": "label", "field": "mood"}})
    with pytest.raises(UserError, match=r"data\.source: a 'causal' model reads no source; leave it out"):
        condition(model={"name": "causal"}, objective="causal")
