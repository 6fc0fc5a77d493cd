"""The models that come with the package: their texts belong to the corpus's language, and controls are met."""

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from diffusionlm import Pipeline, score
from diffusionlm.cli import main
from diffusionlm.evaluation.text_metrics import unigram_entropy
from diffusionlm.models.named import bundled_models
from diffusionlm.pipelines.rows import Controlled, Generated
from diffusionlm.restaurants.corpus import Restaurants
from diffusionlm.restaurants.grammar import parse
from diffusionlm.training.distillation.config import distillation_config

MODEL, FEW = "restaurants", "restaurants-few-steps"


@cache
def opened(name: str) -> Pipeline:
    return Pipeline.from_pretrained(name)


def accepted(texts: Sequence[str]) -> float:
    return sum(parse(text) is not None for text in texts) / len(texts)


def passed(rows: Sequence[Generated]) -> float:
    return sum(all(each.passed for each in row.controls) for row in rows if isinstance(row, Controlled)) / len(rows)


def test_they_are_safe_files_with_cards_in_eight_megabytes(capsys: pytest.CaptureFixture[str]) -> None:
    models = bundled_models()
    assert {MODEL, FEW} <= {*models}
    files = [path for folder in models.values() for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".yaml", ".md"}
    assert sum(path.stat().st_size for path in files) < 8_000_000
    for name, folder in models.items():
        card = (folder / "README.md").read_text()
        assert card.count("license: apache-2.0") == 1 and f"# {name}\n" in card and "accepted by the corpus's grammar" in card
    assert main(["show", "bundled"]) == 0
    assert "classifiers: attributes, spans, tags" in capsys.readouterr().out


def test_samples_are_new_texts_of_the_corpus() -> None:
    texts = [row.text for row in opened(MODEL)(40, seed=5)]
    splits = Restaurants().load()
    assert accepted(texts) >= 0.8  # it is .97 of 500
    assert len({*texts} - {*splits["train"]["text"][:]}) >= 38
    assert unigram_entropy(texts) == pytest.approx(unigram_entropy(splits["test"]["text"][:40]), abs=0.4)


def test_the_joint_head_needs_few_evaluations() -> None:
    few, without = (accepted([row.text for row in opened(name)(40, seed=5, evaluations=4)]) for name in (FEW, MODEL))
    assert few >= 0.6 > without + 0.1


@pytest.mark.parametrize(
    "control",
    [
        "food=Thai", 'Attribute("rating", "low") & Length(12, 16)', 'Infill("The Golden Lion is {} because {} .")',
        'Words("castle") & ~Words("food")', 'Span(0, 2, "NP")', 'PartsOfSpeech("DET ... PUNCT") & Length(14)',
    ],
)  # fmt: skip
def test_controlled_texts_belong_to_the_corpus_too(control: str) -> None:
    rows = opened(MODEL)(10, control, seed=2)
    assert passed(rows) >= 0.8 and accepted([row.text for row in rows]) >= 0.6


@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m", "heun"])
def test_every_sampler_samples_texts_of_the_corpus(sampler: str) -> None:
    assert accepted([row.text for row in opened(MODEL)(12, sampler=sampler, seed=5)]) >= 0.75


def test_more_evaluations_give_better_texts() -> None:
    shares = [accepted([row.text for row in opened(MODEL)(24, evaluations=number, seed=5)]) for number in (4, 16, 62)]
    assert shares[0] + 0.3 < shares[1] and shares[1] < shares[2]


def test_an_edit_keeps_more_of_a_text_the_less_it_is_noised() -> None:
    text = "The Golden Fox is a cheap pub by the old castle, but the chefs are slow."
    kept = [
        sum(len({*text.split()} & {*row.text.split()}) for row in opened(MODEL).edit(text, level=level, count=4))
        for level in (0.2, 0.5, 0.9)
    ]
    assert kept[0] > kept[1] > kept[2]


def test_a_held_out_text_is_likelier_than_its_words_in_another_order() -> None:
    texts = Restaurants().load()["test"]["text"][:6]
    shuffled = [" ".join(random.Random(0).sample(words := text.split(), len(words))) for text in texts]
    bounds = [likelihood.nats for _, likelihood in score(MODEL, [*texts, *shuffled])]
    assert all(right < wrong for right, wrong in zip(bounds[:6], bounds[6:], strict=True))


def test_it_is_a_teacher_and_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = distillation_config(MODEL, "joint", 4)
    assert (config.init_from, config.training.steps, config.training.select) == (MODEL, 24_000, "last")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--init-from", MODEL, "--adapter", "lora", "--out", MODEL, "--steps", "2"]) == 2
    assert "restaurants: would take the name of the bundled model" in capsys.readouterr().err
    assert not (tmp_path / MODEL).exists()


def test_a_folder_of_that_name_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / MODEL).mkdir()
    assert main(["generate", MODEL]) == 2
    assert "restaurants: expected a model folder, but it has no config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["restaurnts"], "restaurnts: expected a model folder, but there is none; did you mean 'restaurants'?"),
        (
            [MODEL, "--control", 'Classifier("good", "my-classifier")'],
            "(there are attributes, spans, tags), and there is no folder",
        ),
    ],
)
def test_a_wrong_name_is_one_sentence(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *words]) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1 and "--out" not in said  # nothing is to be written into the package
