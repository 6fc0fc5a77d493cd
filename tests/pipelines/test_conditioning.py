"""Sampling on conditions: requests, sources in order, classifier-free guidance, controls, and edits of given texts."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusionlm.config import UserError, build
from diffusionlm.core.sampler import Denoised
from diffusionlm.data.corpora import to_dataset
from diffusionlm.models.attributes import Label, Several
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import BasePipeline
from diffusionlm.pipelines.conditioning import guided, guided_logits
from diffusionlm.pipelines.denoiser import Predictor
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.training.run import RunConfig, train

ANIMALS, PLANTS = ["ant", "bee", "cat", "dog"], ["oak", "elm", "fir", "yew"]


def corpus(folder: Path) -> Path:
    """Write texts that repeat their source word for word, backwards; the label says which half of the words they use."""
    draw = random.Random(0)
    rows = []
    for number in range(800):
        label = ("animal", "plant")[number % 2]
        words = draw.choices(ANIMALS if number % 2 == 0 else PLANTS, k=draw.randint(2, 4))
        rows.append({"text": " ".join(reversed(words)), "source": " ".join(words), "kind": label})
    path = folder / "pairs.jsonl"
    to_dataset(rows).to_json(path)
    return path


def trained(folder: Path, condition: dict[str, Any], **changes: Any) -> BasePipeline[Any]:
    """Train a tiny model on the corpus."""
    backbone = changes.pop("backbone", {"name": "transformer", "layers": 2, "width": 32, "heads": 4})
    plain: dict[str, Any] = {
        "data": {"corpus": str(corpus(folder)), "max_length": 8},
        "model": {"dimension": 16, "backbone": backbone, "condition": condition, **changes.pop("model", {})},
        "training": {"steps": 300, "batch_tokens": 512, "warmup": 20, "threads": 1, "precision": "fp32"},
        "sampling": {"steps": 8, "passes": 1, "sweeps": 0},
        **changes,
    }
    train(build(RunConfig, plain), folder / "run", write_samples=False, quiet=True)
    return open_pipeline(folder / "run")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained(tmp_path_factory.mktemp("label"), {"name": "label", "field": "kind"})


@pytest.fixture(scope="module")
def sourced(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained(
        tmp_path_factory.mktemp("source"),
        {"name": "source", "max_length": 6, "layers": 1, "dropout": 0.0},
        model={"prediction": "logits"},
    )


SOURCES = ["ant bee cat", "oak elm", "yew fir oak elm", "dog dog"]


def reversals(rows: Any) -> float:
    """Return the share of samples that are their source backwards."""
    return sum(row.text.split() == (row.source or "").split()[::-1] for row in rows) / len(rows)


def test_samples_are_made_from_their_source(sourced: Pipeline) -> None:
    rows = sourced(8, source=SOURCES, temperature=0.5)
    assert [row.source for row in rows] == [source for source in SOURCES for _ in range(8)]
    assert [row.index for row in rows] == list(range(32))
    assert reversals(rows) > 0.6
    assert sum(len(row.text.split()) == len((row.source or "").split()) for row in rows) > 28  # lengths are predicted
    wrong = [replace(row, source=SOURCES[(row.index // 8 + 1) % 4]) for row in rows]
    assert reversals(wrong) == 0


@pytest.mark.parametrize(
    ("condition", "changes"),
    [
        ({"name": "partial-noising", "max_length": 6}, {}),
        ({"name": "source", "max_length": 6}, {"backbone": {"name": "leave-one-out", "layers": 1, "width": 32, "heads": 4}}),
        (
            {"name": "source", "max_length": 6, "layers": 1},
            {"model": {"name": "masked"}, "objective": "masked", "sampling": {"sampler": "ancestral", "steps": 8}},
        ),
    ],
)
def test_each_way_of_reading_a_source_learns_to_copy(condition: dict[str, Any], changes: Any, tmp_path: Path) -> None:
    pipe = trained(tmp_path, condition, training={"steps": 120, "batch_tokens": 384}, **changes)
    rows = pipe(4, source=SOURCES, temperature=0.5)
    words = [set(row.text.split()) <= {*(row.source or "").split()} for row in rows]
    assert sum(words) / len(words) > 0.4  # by chance about .05  # a text of other words would rarely be made of its source's


def test_a_sample_depends_neither_on_other_sources_nor_on_the_batch(sourced: Pipeline) -> None:
    rows = sourced(3, source=SOURCES)
    assert sourced(3, source=SOURCES, batch_size=2) == rows
    assert sourced(3, source=SOURCES[0]) == rows[:3]
    assert sourced(3, source=SOURCES[:2]) == rows[:6]
    assert sourced(source=SOURCES[0]) == rows[:1]


def test_controls_and_candidates_compose_with_a_source(sourced: Pipeline) -> None:
    rows = sourced(2, ['Length(3) & ~Words("oak")'], source=SOURCES, candidates=3)
    assert [row.length for row in rows] == [3] * 8 and not any("oak" in row.text.split() for row in rows)
    assert all(row.controls[0].passed for row in rows) and rows[2].source == SOURCES[1]  # type: ignore[attr-defined]


def test_labels_and_their_guidance(labelled: Pipeline) -> None:
    shares = {}
    for condition, cfg in (("animal", 1.0), ("plant", 1.0), ("animal", 0.0), (None, 1.0)):
        words = [word for row in labelled(24, condition=condition, cfg=cfg) for word in row.text.split()]
        shares[condition, cfg] = sum(word in ANIMALS for word in words) / len(words)
    assert shares["animal", 1.0] > 0.95 and shares["plant", 1.0] < 0.05
    assert 0.2 < shares[None, 1.0] < 0.8 and shares["animal", 0.0] == shares[None, 1.0]
    assert labelled(2, condition={"kind": "animal"}) == labelled(2, condition="animal")


def test_guidance_extrapolates_from_the_null_condition(labelled: Pipeline) -> None:
    torch.manual_seed(0)
    mask, xt, t = torch.ones(2, 5, dtype=torch.bool), torch.randn(2, 5, 16), torch.tensor([0.6, 0.9])
    given = labelled.model.condition_on(labelled.model.settings.condition.collate(["animal", "plant"]))  # type: ignore[union-attr]
    previous = torch.randn(2, 5, 16)

    def predicted(cfg: float = 1.0, self_cfg: float = 1.0, condition: Any = given, last: Any = previous) -> Denoised:
        with torch.no_grad():
            return Predictor(labelled.model, mask, condition=condition, cfg=cfg, self_cfg=self_cfg)(xt, t, last)

    plain, null, blind = predicted(), predicted(condition=None), predicted(last=None)
    assert torch.equal(predicted(0.0).logits, null.logits)
    assert torch.equal(predicted(3.0).logits, guided_logits(null.logits, plain.logits, 3.0, 0.1))
    torch.testing.assert_close(predicted(0.5).logits, null.logits + 0.5 * (plain.logits - null.logits))
    torch.testing.assert_close(predicted(self_cfg=2.0).logits, blind.logits + 2 * (plain.logits - blind.logits))
    mean = predicted(3.0).logits.softmax(-1) @ labelled.model.word_vectors()
    torch.testing.assert_close(predicted(3.0).x0, mean)


def test_guidance_raises_no_word_that_is_improbable_with_the_condition() -> None:
    """Straight on, the third word would be the most probable: 2 log .002 - log 1e-6 is 1.4, 2 log .9 - log .8 is 0."""
    given = torch.tensor([0.9, 0.098, 0.002, 0.0]).log()
    without = torch.tensor([0.8, 0.19, 1e-6, 0.0]).log()
    straight = guided(without, given, 2.0)
    assert int(straight.argmax()) == 2 and straight[2] == pytest.approx(2 * math.log(0.002) - math.log(1e-6), abs=1e-4)
    moved = guided_logits(without + 5, given - 3, 2.0, 0.1)  # logits, of no sum
    assert moved[:3].tolist() == pytest.approx(
        [2 * math.log(0.9) - math.log(0.8), 2 * math.log(0.098) - math.log(0.19), math.log(0.002)], abs=2e-2
    )
    assert moved[3] == -math.inf
    for scale in (0.0, 0.5, 1.0):
        assert torch.equal(guided_logits(without, given, scale, 0.1), guided(without, given, scale))


@pytest.mark.parametrize(("floor", "raised"), [(0.0, 4), (0.01, 3), (0.1, 2), (0.9, 1)])
def test_the_floor_of_guidance_decides_which_words_it_may_raise(floor: float, raised: int) -> None:
    """Ratios to the largest are 1, .25, .024 and .0002; the plain rule is p(w | c)^s / p(w)^(s - 1), normalised."""
    given, without = torch.tensor([0.7842, 0.1968, 0.0188, 0.0002]), torch.tensor([0.864, 0.1236, 0.0123, 0.0001])
    plain = given**2 / without
    moved = guided_logits(without.log(), given.log(), 2.0, floor).exp()
    kept = torch.arange(4) < raised
    expected = torch.where(kept, plain, torch.minimum(plain, given))
    torch.testing.assert_close(moved / moved.sum(), expected / expected.sum())
    assert bool((plain > given)[1:].all())  # the plain rule raises all but the first


def test_the_floor_is_a_setting_of_sampling(labelled: Pipeline) -> None:
    mask, xt, t = torch.ones(2, 5, dtype=torch.bool), torch.randn(2, 5, 16), torch.tensor([0.6, 0.9])
    given = labelled.model.condition_on(labelled.model.settings.condition.collate(["animal", "plant"]))  # type: ignore[union-attr]
    sampling = replace(labelled.sampling, cfg=3.0, cfg_floor=0.0)
    with torch.no_grad():
        plain = Predictor(labelled.model, mask, condition=given)(xt, t).logits
        null = Predictor(labelled.model, mask)(xt, t).logits
        found = replace(labelled.predictor([5, 5], given, sampling=sampling), mask=mask)(xt, t).logits
    torch.testing.assert_close(found, null + 3 * (plain - null))


def test_several_conditions_have_a_value_each(tmp_path: Path) -> None:
    parts = [{"name": "label", "field": "kind"}, {"name": "source", "max_length": 6, "layers": 1}]
    pipe = trained(tmp_path, {"name": "several", "parts": parts}, training={"steps": 2, "batch_tokens": 512})
    spec = pipe.model.settings.condition
    assert isinstance(spec, Several) and spec.parts[0] == Label("kind", ("animal", "plant"))
    one, same = (
        pipe(2, condition={"kind": "animal"}, source="ant bee"),
        pipe(2, condition={"kind": "animal", "source": "ant bee"}),
    )
    assert [row.text for row in one] == [row.text for row in same] and (one[0].source, same[0].source) == ("ant bee", None)
    with pytest.raises(UserError, match=r"^condition: expected a value for some of kind, source, by name, got 'animal'"):
        pipe(1, condition="animal")
    with pytest.raises(UserError, match=r"^condition: this model has no condition called 'kinds'; did you mean 'kind'\?"):
        pipe(1, condition={"kinds": "animal"})


def test_requests_that_do_not_fit_the_model(labelled: Pipeline, sourced: Pipeline) -> None:
    calls: dict[Callable[[], Any], str] = {
        lambda: labelled(1, source="ant"): "source: this model is conditioned on kind, not on a source text",
        lambda: labelled(1, condition="animl"): "condition: kind has no value 'animl'; did you mean 'animal'?",
        lambda: labelled(1, cfg=2.0): "cfg: there is no condition to guide to; leave it at 1",
        lambda: sourced(1, source=[]): "source: expected a text or several, got an empty list",
        lambda: sourced(1, source=" "): "source: expected a text, got ' '",
        lambda: sourced(1, source="ant " * 9): "source: expected at most 6 tokens (model.condition.max_length), got 9",
        lambda: sourced(1, condition="ant", source="bee"): "condition: expected the source alone, which is given already",
    }
    for call, sentence in calls.items():
        with pytest.raises(UserError) as caught:
            call()
        assert str(caught.value).startswith(sentence)


def test_a_model_that_never_saw_the_null_condition_is_not_guided(labelled: Pipeline) -> None:
    pipe = replace(labelled)
    settings = labelled.model.settings
    assert settings.condition is not None
    pipe.model.settings = replace(settings, condition=replace(settings.condition, drop=0.0))  # type: ignore[type-var]
    try:
        with pytest.raises(UserError, match=r"^cfg: this model was trained without dropping its condition"):
            pipe(1, condition="animal", cfg=2.0)
    finally:
        pipe.model.settings = settings


@pytest.mark.parametrize("family", ["diffusion", "masked"])
def test_saved_guidance_needs_no_condition_in_training_and_one_in_sampling(family: str, tmp_path: Path) -> None:
    sampler = {"sampler": "ancestral"} if family == "masked" else {"passes": 1, "sweeps": 0}
    changes = {} if family == "diffusion" else {"objective": "masked"}
    plain: dict[str, Any] = {
        "data": {"corpus": str(corpus(tmp_path)), "max_length": 8},
        "model": {
            "name": family,
            "backbone": {"name": "transformer", "layers": 1, "width": 16, "heads": 2},
            "condition": {"name": "label", "field": "kind"},
        },
        "training": {"steps": 2, "batch_tokens": 256, "threads": 1, "precision": "fp32"},
        "sampling": {"steps": 2, "cfg": 2.0, **sampler},
        **changes,
    }
    assert train(build(RunConfig, plain), tmp_path / "run", quiet=True)
    assert len((tmp_path / "run/samples/step-2.txt").read_text().splitlines()) == 10
    pipe = open_pipeline(tmp_path / "run")
    assert len(pipe(2, condition="animal")) == 2
    with pytest.raises(UserError, match="^cfg: there is no condition to guide to; leave it at 1"):
        pipe(2)


# Edits


def test_an_edit_keeps_more_of_the_text_at_lower_levels(sourced: Pipeline) -> None:
    text = "ant oak bee elm"
    assert [row.text for row in sourced.edit(text, 0.0, count=3)] == [text] * 3
    kept = []
    for level in (0.05, 0.5, 1.0):
        rows = list(sourced.edit(text, level, count=24))
        assert all(row.length == 4 and row.source == text for row in rows)
        kept.append(sum(a == b for row in rows for a, b in zip(row.text.split(), text.split(), strict=False)) / 96)
    assert kept[0] > 0.9 > kept[1] + 0.2 and kept[1] > kept[2] + 0.2
    assert list(sourced.edit(text, 0.6, count=2)) == list(sourced.edit([text], 0.6, count=2))


def test_an_edit_follows_controls_and_its_source(sourced: Pipeline) -> None:
    rows = list(sourced.edit(["ant bee cat", "oak elm"], 0.5, '~Words("bee") & ~Words("elm")', count=4))
    assert [row.length for row in rows] == [3] * 4 + [2] * 4
    assert all(row.controls[0].passed for row in rows)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"^control: Length\(4\) needs 4 tokens, but length is 3"):
        list(sourced.edit("ant bee cat", 0.5, "Length(4)"))


@pytest.mark.parametrize(
    ("text", "level", "sentence"),
    [
        ("ant", 1.5, "level: expected a number from 0 (the text) to 1 (pure noise), got 1.5"),
        ("ant crocodile", 0.5, "text: the model does not know the word 'crocodile' of 'ant crocodile'"),
        ("", 0.5, "text: expected 1 to 6 tokens, got 0: ''"),
        ("ant " * 7, 0.5, "text: expected 1 to 6 tokens, got 7"),
    ],
)
def test_texts_that_cannot_be_edited(sourced: Pipeline, text: str, level: float, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        list(sourced.edit(text, level))
    assert str(caught.value).startswith(sentence)
