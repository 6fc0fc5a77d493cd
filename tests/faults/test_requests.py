"""Values that are not what they seem, in corpora of conditions, files of sources and calls: one sentence each, before sampling."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_lora_folders import refused
from tiny_runs import ROOT, tiny_config

from diffusionlm.config import build
from diffusionlm.controls.functions import scores_of
from diffusionlm.data.batches import Example
from diffusionlm.data.corpora import to_dataset
from diffusionlm.data.references import read_items, read_sources
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.models.attributes import Label, Number, Several
from diffusionlm.models.source import Source
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.conditioning import listed
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.training.run import claim

STORED = ROOT / "tests" / "golden" / "format-1"
STARS = Number("stars", mean=2.0, deviation=1.0)
CAFE = {form: unicodedata.normalize(form, "café") for form in ("NFC", "NFD")}


def written(folder: Path, name: str, *rows: Any) -> str:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def rows(field: str, *values: Any) -> Any:
    return to_dataset([{"text": f"text {number}", field: value} for number, value in enumerate(values)])


# Labels and numbers of a corpus


def test_nan_is_no_label_and_a_list_is_none_either() -> None:
    assert Label("kind").fitted(rows("kind", "low", math.nan, 3, None)).labels == ("3", "low")
    sentence = refused(lambda: Label("kind").fitted(rows("kind", "low", ["low"], "high")))
    assert sentence == "model.condition: expected a word or a number in 'kind', got ['low'] in text 2"


def test_labels_are_compared_in_normal_form_c() -> None:
    found, tokenizer = rows("kind", CAFE["NFD"], CAFE["NFC"], "pub"), WordTokenizer().make(["a"])
    fitted = Label("kind").fitted(found)
    assert fitted.labels == (CAFE["NFC"], "pub")
    for labels in (fitted.labels, (CAFE["NFD"], "pub")):  # as a model of an earlier version may have saved them
        label = Label("kind", labels)
        assert label.values(found) == [labels[0], labels[0], "pub"]
        assert label.encoded([*CAFE.values(), None], tokenizer) == [labels[0], labels[0], None]


def test_a_number_that_is_none_is_named_with_its_text() -> None:
    assert Number("stars").values(rows("stars", 1, math.nan, "3")) == [1.0, None, 3.0]
    for value in ("three", math.inf):  # infinity does not become a missing value on the way
        sentence = refused(lambda: Number("stars").fitted(rows("stars", 1, value)))  # noqa: B023
        assert sentence == f"condition: stars: expected a number, got {str(value)!r} in text 2"


def test_numbers_that_are_others_to_the_network_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    Number("stars").fitted(rows("stars", *range(30), 1000))
    said = capsys.readouterr().err
    assert said.startswith("model.condition: 1 of 31 numbers in 'stars' are more than 4 standard deviations from their mean")
    Number("stars").fitted(rows("stars", *range(30)))
    assert capsys.readouterr().err == "" and said.count("\n") == 1


@pytest.mark.parametrize("value", [10.0, "-6", 1e300, "", " "])
def test_numbers_that_the_network_takes_for_others_are_refused(value: Any) -> None:
    """Its lowest frequency has a period of 8 standard deviations: 2 and 10 have the same features."""
    module, both = STARS.build(None), STARS.collate([2.0, 10.0])  # type: ignore[arg-type]
    first, second = module.train(False)(**both).features
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    for condition, given in ((STARS, value), (Several((STARS, Label("kind", ("a", "b")))), {"stars": value})):
        assert refused(lambda: condition.requested(given)).startswith("condition: stars: expected a number")  # noqa: B023
    assert STARS.requested("6") == 6 and STARS.requested(None) is None


def test_a_source_without_any_token_is_not_taken_for_none() -> None:
    tokenizer = WordTokenizer().make(["ant bee"])
    assert Source().encoded(["ant", None], tokenizer)[1] is None
    sentence = refused(lambda: Source()._fitting([], "\u200b"))
    assert sentence == "source: expected a text, but its tokenizer reads no token in '\\u200b'"


# Files of sources


@pytest.mark.parametrize("first", ['{"source": "ant"}', '{"src": "ant", "trg": "bee"}', "mr,ref"])
def test_a_table_in_a_file_of_lines_is_not_read_as_a_source(first: str, tmp_path: Path) -> None:
    path = written(tmp_path, "s.txt", first, "bee")
    assert refused(lambda: read_sources(path)).startswith(f"{path}: expected a source on each line, got ")


def test_the_column_of_sources_is_the_only_one_or_that_with_targets(tmp_path: Path) -> None:
    path = written(tmp_path, "s.jsonl", {"src": "ant", "source": "quora", "trg": "bee"})
    assert [(item.source, item.references) for item in read_sources(path)] == [("ant", ("bee",))]
    path = written(tmp_path, "two.jsonl", {"src": "ant", "source": "quora"})
    wanted = f"{path}: expected one column of sources, got 'source', 'src'; rename the others"
    assert refused(lambda: read_sources(path)) == wanted
    path = written(tmp_path, "four.jsonl", {"src": "ant", "trg": "bee", "mr": "cat", "ref": "dog"})
    assert "got 'mr', 'src'" in refused(lambda: read_items(path))


def test_a_source_without_a_reference_is_kept_among_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [{"src": "ant", "trg": "a"}, {"src": "bee", "trg": ""}, {"src": "cat"}, {"src": "ant", "trg": "b"}]
    found = read_sources(written(tmp_path, "s.jsonl", *pairs))
    assert [(item.source, item.references) for item in found] == [("ant", ("a", "b")), ("bee", ()), ("cat", ())]
    assert capsys.readouterr().err == ""
    path = written(tmp_path, "t.jsonl", pairs[0], {"trg": "b"})
    assert refused(lambda: read_sources(path)) == f"{path}, line 2: expected a source text, got none"


# Calls


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (5, "source: expected a text or a list of texts, got 5"),
        (b"ant", "source: expected a text or a list of texts, got b'ant'"),
        ({"a": "ant"}, "source: expected a text or a list of texts, got {'a': 'ant'}"),
        ([], "source: expected a text or several, got an empty list"),
        (["ant", None], "source: expected a list of texts, got None as number 2"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(texts: Any, sentence: str) -> None:
    assert refused(lambda: listed(texts, "source")) == sentence
    assert listed("ant", "source") == ["ant"] and listed(iter(["ant", "bee"]), "source") == ["ant", "bee"]


def test_calls_without_a_text_a_number_or_a_level_are_refused() -> None:
    pipe: Any = Pipeline.from_pretrained(STORED)
    calls: dict[Callable[[], Any], str] = {
        lambda: pipe.edit([]): "text: expected a text or several, got an empty list",
        lambda: pipe.edit("a pub", "half"): "level: expected a number from 0 (the text) to 1 (pure noise), got half",
        lambda: pipe(-1): "count: expected a number of samples, 0 or more, got -1",
        lambda: pipe(1.5): "count: expected a number of samples, 0 or more, got 1.5",
    }
    for call, sentence in calls.items():
        assert refused(lambda: list(call())) == sentence  # noqa: B023
    assert pipe(0) == []


def test_several_conditions_of_which_none_is_given_are_the_null_condition() -> None:
    """Guidance then is refused as for one condition: it would have no effect."""
    several = Several((STARS, Label("kind", ("a", "b"))))
    tokenizer = WordTokenizer().make(["a"])
    assert several.encoded([several.requested({}), {"kind": "a"}], tokenizer) == [None, {"stars": None, "kind": "a"}]


@pytest.mark.parametrize("scale", [1e5, 1e300])
def test_scales_of_guidance_that_overflow_are_refused(scale: float) -> None:
    assert refused(lambda: build(SamplingConfig, {"cfg": scale})).startswith("cfg: expected 0 to 10000, got 1")


def _fails(texts: list[str]) -> list[float]:
    raise ValueError("two\nlines")


@pytest.mark.parametrize("function", [_fails, lambda texts: [10**400], lambda texts: torch.zeros(2, 2), lambda texts: "a\nb"])
def test_what_a_ranking_function_does_wrong_is_one_line(function: Callable[..., Any]) -> None:
    assert refused(lambda: scores_of(function, ["a"], "ranking")).startswith("ranking: ")


# Resuming


def test_a_run_is_not_resumed_with_other_sources_of_the_same_texts(tmp_path: Path) -> None:
    config, run, texts = tiny_config(tmp_path), tmp_path / "run", [Example([2, 4, 3]), Example([2, 5, 3])]
    run.mkdir()
    for text, source in zip(texts, ([7], [8]), strict=True):
        text.condition = source
    claim(config, run, texts)
    claim(config, run, texts)
    texts[0].condition = [8]
    expected = f"{run}: the sources or labels of the training texts differ from those that this run started with; choose"
    assert refused(lambda: claim(config, run, texts)).startswith(expected)
    saved = json.loads((run / "data.json").read_text())
    del saved["conditions"]  # as earlier versions wrote it
    (run / "data.json").write_text(json.dumps(saved))
    claim(config, run, texts)
