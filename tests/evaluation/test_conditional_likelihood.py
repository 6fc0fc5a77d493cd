"""The likelihood of texts given a condition: a distribution over texts for each value, on the command line and in Python."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_conditions import ANIMALS, CONDITIONS, trained

from diffusionlm.cli import main
from diffusionlm.config import UserError
from diffusionlm.evaluation.likelihood import length_nats
from diffusionlm.evaluation.scoring import ScoringConfig, score
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.pipelines.base import BasePipeline
from diffusionlm.pipelines.conditioning import conditioning


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {name: trained(folder, name) for name in CONDITIONS if name != "causal"}


def stirred(folder: str) -> BasePipeline[Any]:
    """Return a pipeline whose weights are moved at random: the last layer of an untrained network is nearly 0."""
    pipe = open_pipeline(folder)
    torch.manual_seed(0)
    for parameter in pipe.model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return pipe


def nats(pipe: BasePipeline[Any], texts: list[str], **given: Any) -> list[float]:
    orders, strata = given.pop("orders", 0), given.pop("strata", 8)
    settings = ScoringConfig(orders=orders) if orders else ScoringConfig(strata=strata)
    return [bound.nats for _, bound in score(pipe, texts, settings, **given)]


GIVEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "source": ({"source": ["ant bee"] * 2}, {"source": ["dog"] * 2}),
    "masked": ({"source": ["ant bee"] * 2}, {"source": ["dog"] * 2}),
    "label": ({"condition": "low"}, {"condition": {"kind": "high"}}),
    "several": ({"condition": {"kind": "low"}, "source": ["ant"] * 2}, {"condition": {"kind": "high"}, "source": ["ant"] * 2}),
}


@pytest.mark.parametrize("orders", [0, 2])
@pytest.mark.parametrize("model", GIVEN)
def test_a_bound_depends_on_the_condition_of_its_own_text_alone(model: str, orders: int, models: dict[str, str]) -> None:
    pipe, texts = stirred(models[model]), ["bee ant", "cat dog"]
    one, other = (nats(pipe, texts, orders=orders, **given) for given in GIVEN[model])
    assert one == nats(pipe, texts, orders=orders, **GIVEN[model][0]) and all(map(math.isfinite, one))
    assert one[0] != other[0] and one[1] != other[1]
    if "source" in GIVEN[model][0]:
        sources = [GIVEN[model][0]["source"][0], GIVEN[model][1]["source"][0]]
        mixed = nats(pipe, texts, orders=orders, **{**GIVEN[model][0], "source": sources})
        assert mixed[0] == one[0] and (mixed[1] == other[1]) == (model != "several")


def test_the_masked_likelihood_of_one_word_given_a_source_is_a_distribution_over_words(models: dict[str, str]) -> None:
    """With a single word the bound is exact: -log p(length | source) - log p(word | source)."""
    pipe = stirred(models["masked"])
    words = [word for word in pipe.tokenizer.get_vocab() if word.strip("▁") in ANIMALS]
    given = {"source": ["ant bee"] * 4}
    value = pipe.model.settings.condition.encoded(["ant bee"], pipe.tokenizer)
    length = length_nats(pipe.model, 3, conditioning(pipe.model, value))
    probabilities = [math.exp(length - found) for found in nats(pipe, ANIMALS, **given)]
    assert len(words) == 4 and 0.2 < sum(probabilities) < 1
    hidden = torch.ones(1, 1, dtype=torch.bool)
    ids = torch.tensor([pipe.tokenizer("ant")["input_ids"]])
    with torch.no_grad():
        hidden = torch.tensor([[False, True, False]])
        logits = pipe.model(ids, hidden, None, conditioning(pipe.model, value))
    exact = logits.log_softmax(-1)[0, 1, ids[0, 1]].exp()
    assert probabilities[0] == pytest.approx(float(exact), rel=1e-5)


def test_lengths_given_a_source_are_a_distribution(models: dict[str, str]) -> None:
    pipe = stirred(models["source"])
    values = pipe.model.settings.condition.encoded(["ant bee", "dog"], pipe.tokenizer)
    found = []
    for value in values:
        given = conditioning(pipe.model, [value])
        found.append([math.exp(-length_nats(pipe.model, n, given)) for n in range(3, pipe.model.config.max_tokens + 1)])
        assert sum(found[-1]) == pytest.approx(1)
    assert found[0] != found[1] and found[0] != [
        math.exp(-length_nats(pipe.model, n)) for n in range(3, pipe.model.config.max_tokens + 1)
    ]


def test_the_likelihood_of_a_source_that_was_used_in_training_is_higher(tmp_path: Path) -> None:
    """After some training the bound of a text is lower given its own source than given another."""
    from test_conditioning import trained as trained_longer

    pipe = trained_longer(
        tmp_path, {"name": "source", "max_length": 6, "layers": 1, "dropout": 0.0}, training={"steps": 150, "batch_tokens": 512}
    )
    texts = [" ".join(words) for words in itertools.permutations(["ant", "bee", "cat"])]
    sources = [" ".join(text.split()[::-1]) for text in texts]
    right = nats(pipe, texts, source=sources, strata=32)
    wrong = nats(pipe, texts, source=["yew fir oak"] * len(texts), strata=32)
    assert sum(right) < sum(wrong) - 6


# The command line


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_sources_come_from_a_column_or_another_file(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [{"src": "ant bee", "trg": "bee ant"}, {"src": "dog", "trg": "dog"}, {"src": "ant bee", "trg": "bee"}]
    file = written(tmp_path / "p.jsonl", *pairs)
    texts = written(tmp_path / "t.txt", *(pair["trg"] for pair in pairs))
    sources = written(tmp_path / "s.txt", *(pair["src"] for pair in pairs))
    found = []
    for rest in ([file, "--column", "trg"], [texts, "--source", sources], [texts, "--source", file]):
        assert main(["score", models["source"], *rest, "--strata", "4"]) == 0
        out, err = capsys.readouterr()
        assert "at most" in err and "3 texts" in err
        found.append(out)
    assert found[0] == found[1] == found[2] and found[0].count("\n") == 3
    assert main(["score", models["several"], texts, "--source", sources, "--condition", "kind=low", "--strata", "4"]) == 0
    assert main(["score", models["label"], texts, "--condition", "low", "--strata", "4"]) == 0


def test_scores_without_what_the_model_needs_are_refused(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, one = written(tmp_path / "t.txt", "ant", "bee cat"), written(tmp_path / "s.txt", "ant")
    bare = written(tmp_path / "p.jsonl", {"src": "ant", "trg": "ant"}, {"src": "", "trg": "bee"})
    sentences = {
        ("source", texts): f"{texts}: expected a column of sources, source or mr or src, got 'text'",
        ("source", texts, "--source", one): "source: expected one for each of 2 texts, got 1",
        ("source", texts, "--source", texts): "--source: expected another file than that of the texts",
        ("source", bare, "--column", "trg"): f"{bare}, line 2: expected a source text, got none",
        ("source", "-"): "--source: expected a file with the source of each text, since standard input has texts alone",
        ("label", texts): "condition: this model was trained with one, kind: expected its value, or the source of each text",
        ("label", texts, "--condition", "lo"): "condition: kind has no value 'lo'; did you mean 'low'?",
        ("plain", texts, "--source", texts + "x"): f"{texts}x",
        ("plain", texts, "--condition", "low"): "condition: this model was trained without a condition; leave it out",
        ("plain", texts, "--source", one): "source: this model was trained without a condition; leave it out",
    }
    for (model, *rest), sentence in sentences.items():
        assert main(["score", models[model], *rest]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"diffusionlm: {sentence}") and err.count("\n") == 1, err
    with pytest.raises(UserError, match=r"texts: expected a list of texts, got one text"):
        nats(open_pipeline(models["source"]), ["ant"], source="bee")
