"""Sources with a tokenizer of their own: two vocabularies in one model, saved and loaded together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_sources import FAMILIES, LABEL, OWN, WORDS, config, digits, trained
from transformers import AutoTokenizer

from diffusionlm import Pipeline
from diffusionlm.config import UserError, build, to_plain
from diffusionlm.data.corpora import read_file
from diffusionlm.data.tokenizers import SOURCES, BytePairs, WordTokenizer, join_sources, load_tokenizer, of_sources
from diffusionlm.models.attributes import Label, Several
from diffusionlm.models.conditions import Condition
from diffusionlm.models.seq2seq import encode_sources
from diffusionlm.models.source import PartialNoising, Source
from diffusionlm.pipelines.auto import open_pipeline
from diffusionlm.training.run import RunConfig, train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the run of each of ``FAMILIES``."""
    folder = tmp_path_factory.mktemp("sources")
    return {name: trained(folder, name) for name in FAMILIES}


def vectors(run: Path) -> dict[str, torch.Tensor]:
    """Return the word vectors of a model's encoder of sources, with their names."""
    weights = load_file(run / "model" / "model.safetensors")
    names = ("condition.embedding.weight", "condition.parts.1.embedding.weight", "encoder.embed_tokens.weight")
    return {name: weights[name] for name in names if name in weights}


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_and_sources_have_no_word_in_common(name: str, runs: dict[str, Path]) -> None:
    pipe = open_pipeline(runs[name])
    own = of_sources(pipe.tokenizer)
    assert own is not None
    special = {*pipe.tokenizer.all_special_tokens}
    assert {*pipe.tokenizer.get_vocab()} - special == {f"▁{word}" for word in WORDS.values()}
    assert {*"1234"} <= {token.removeprefix("▁") for token in {*own.get_vocab()} - special} <= {"", *"1234"}
    (shown,) = vectors(runs[name]).values()
    assert len(shown) == len(own) + (name == "seq2seq") == pipe.model.config.source_vocabulary + (name == "seq2seq")
    (given,) = pipe.model.settings.condition.encoded([pipe.model.settings.condition.with_source(None, "3 1")], pipe.tokenizer)
    assert (given["source"] if name == "several" else given) == own("3 1", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", FAMILIES)
def test_both_are_read_by_transformers(name: str, runs: dict[str, Path]) -> None:
    model, pipe = runs[name] / "model", open_pipeline(runs[name])
    for folder, tokenizer in ((model, pipe.tokenizer), (model / SOURCES, of_sources(pipe.tokenizer))):
        found = AutoTokenizer.from_pretrained(str(folder))
        assert tokenizer is not None and found.get_vocab() == tokenizer.get_vocab()
        for text in ("3 1 2", "cat 9"):
            assert found(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert found.model_max_length == 8
    assert {path.suffix for path in model.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".md", ""}  # finished


@pytest.mark.parametrize("name", ["source", "seq2seq"])
def test_the_vectors_of_sources_are_not_those_of_texts(name: str, runs: dict[str, Path]) -> None:
    """Each is trained on its own, and saved once."""
    model = open_pipeline(runs[name]).model
    texts = model.shared.weight if name == "seq2seq" else model.embedding.weight
    ((key, saved),) = vectors(runs[name]).items()
    assert torch.equal(model.get_parameter(key), saved)
    assert saved.data_ptr() != texts.data_ptr() and texts.shape[0] == len(WORDS) + 4
    if name == "seq2seq":
        assert model.lm_head.weight is model.decoder.embed_tokens.weight is model.shared.weight
        null = encode_sources(model, torch.zeros(1, 1, dtype=torch.long), torch.tensor([0]))["encoder_outputs"][0]
        changed = saved.clone()
        changed[:-1] += 1  # of all tokens but BOS
        model.encoder.embed_tokens.weight.data = changed
        again = encode_sources(model, torch.zeros(1, 1, dtype=torch.long), torch.tensor([0]))["encoder_outputs"][0]
        assert torch.equal(null[:, 0], again[:, 0])


def test_the_default_shares_the_tokenizer_of_the_texts(tmp_path: Path) -> None:
    plain = {**OWN, "tokenizer": None}
    run = config(tmp_path, {"model": {"condition": plain}})
    assert (
        to_plain(run.model)["condition"] == to_plain(build(Condition, plain))
        and not to_plain(run.model)["condition"]["tokenizer"]
    )
    rows = read_file(digits(tmp_path))
    texts = run.model.tokenizer_texts(rows)
    assert texts == [*rows["text"], *rows["source"]]
    own = config(tmp_path, FAMILIES["source"]).model.tokenizer_texts(rows)
    assert own == config(tmp_path, FAMILIES["several"]).model.tokenizer_texts(rows) == rows["text"][:]


def test_settings_name_a_tokenizer_as_data_tokenizer_does() -> None:
    def of(tokenizer: Any) -> Any:
        model: Any = build(RunConfig, {"model": {"condition": {"name": "source", "tokenizer": tokenizer}}}).model
        return model.condition

    assert of("words").tokenizer == WordTokenizer() and of(None).tokenizer is None
    assert of({"name": "bpe", "vocab_size": 30}).tokenizer == BytePairs(30)
    parts = Several((Label("kind"), Source(tokenizer=WordTokenizer())))
    assert parts.with_own_tokenizer == parts.parts[1] and Several((Label("kind"), Source())).with_own_tokenizer is None


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        (
            {"name": "partial-noising", "tokenizer": "words"},
            "model.condition.tokenizer: expected none, since 'partial-noising' joins source and text to one sequence with the "
            "same word vectors; leave it out, or take the condition 'source'",
        ),
        (
            {"name": "source", "tokenizer": {"name": "bpe", "size": 80}},
            "model.condition.tokenizer.size: there is no such setting; choose from vocab_size",
        ),
        (
            {"name": "source", "tokenizer": "word"},
            "model.condition.tokenizer: no tokenizer is called 'word'; did you mean 'words'?",
        ),
        ({"name": "source", "tokenizer": {"name": "words", "min_count": 0}}, "min_count: expected 1 or more, got 0"),
    ],
)
def test_impossible_settings(condition: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        build(RunConfig, {"model": {"condition": condition}})
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("tokenizer", "sentence"),
    [
        (
            WordTokenizer(1000),
            "model.condition.tokenizer.min_count: the sources hold no word 1000 times or more",
        ),
        ({"name": "pretrained", "path": "/no/where"}, "model.condition.tokenizer.path: there is no folder '/no/where'"),
    ],
)
def test_no_tokenizer_can_be_made(tokenizer: Any, sentence: str, tmp_path: Path) -> None:
    digits(tmp_path)
    with pytest.raises(UserError) as caught:
        trained(tmp_path, "source", model={"condition": {"tokenizer": tokenizer}})
    assert str(caught.value) == sentence and not (tmp_path / "source").exists()


def test_a_model_with_the_tokenizer_of_its_texts_alone_refuses_sources(runs: dict[str, Path]) -> None:
    """A source read by the wrong tokenizer would be other words."""
    pipe = open_pipeline(runs["source"])
    alone = Pipeline(pipe.model, load_tokenizer(runs["source"] / "model"), pipe.sampling)
    assert alone(1)[0].text
    with pytest.raises(UserError, match=r"^source: this model reads its sources with a tokenizer of their own, and it has"):
        alone(1, source="3 1")
    own = of_sources(pipe.tokenizer)
    assert own is not None
    join_sources(alone.tokenizer, own)
    assert [row.text for row in alone(2, source="3 1")] == [row.text for row in pipe(2, source="3 1")]


def test_digits_become_words(tmp_path: Path) -> None:
    """A source in another alphabet is read: the model learns which word stands for which digit."""
    digits(tmp_path, count=200, least=1, most=1)
    rare = {"evaluate_every": 10**6, "sample_every": 10**6, "save_every": 10**6, "log_every": 10**6, "warmup": 5}
    optimizer = {"name": "adamw", "learning_rate": 0.02}
    training = {"steps": 100, **rare, "optimizer": optimizer}
    changes = {"training": training, "model": {"condition": {"drop": 0.0}}}
    train(config(tmp_path, FAMILIES["source"], **changes), tmp_path / "run", write_samples=False, quiet=True)
    rows = open_pipeline(tmp_path / "run")(10, source=[*WORDS])
    assert sum(row.text == WORDS[row.source or ""] for row in rows) > 0.7 * len(rows)  # chance is 0.25


def test_a_part_of_several_has_its_own(runs: dict[str, Path]) -> None:
    pipe = open_pipeline(runs["several"])
    kept = json.loads((runs["several"] / "model" / "config.json").read_text())["settings"]["condition"]["parts"]
    assert kept[1]["tokenizer"] == {"name": "words", "min_count": 1} and kept[0]["field"] == LABEL["field"]
    assert [row.source for row in pipe(1, condition={"kind": "low"}, source=["3 1", "2"])] == ["3 1", "2"]


def test_two_parts_with_a_tokenizer_each_are_refused() -> None:
    with pytest.raises(UserError, match="parts: expected"):
        Several((Source(tokenizer=WordTokenizer()), PartialNoising()))
