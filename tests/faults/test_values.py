"""Values that are not what they seem: settings, control arguments, counts of labels and figures that nothing was measured for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffusionlm.cli import main
from diffusionlm.config import UserError, build, override, read_setting, read_yaml, to_plain
from diffusionlm.controls import Length, Prefix, Words, read_control
from diffusionlm.core.schedule import NoiseSchedule
from diffusionlm.data.annotators import Plain, Reader
from diffusionlm.data.batches import encode
from diffusionlm.data.corpora import Files, to_dataset
from diffusionlm.data.labels import Field, Labelled, Labels, SpanLabels, TextLabels, TokenLabels
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.models.classifier.accuracy import LOG_SNRS, Accuracy, span_measures, value_measures
from diffusionlm.training.run import RunConfig, read_config


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def configured(*assignments: tuple[str, str]) -> RunConfig:
    return read_config([], [("data.corpus", "{name: files, train: a.txt}"), *assignments])


# The command line


@pytest.mark.parametrize(
    "name",
    [
        "reviews #1.txt",
        "null",
        "[2024] a.txt",
        "{a}.txt",
        "no",
        "~",
        "1e3.txt",
        "010",
        "7",
        "2024-01-01",
        "a: b",
        "*.txt",
        "@x",
    ],
)
def test_a_value_of_a_text_setting_is_that_text_and_survives_the_runs_config(name: str) -> None:
    config = configured(("data.corpus.train", name))
    assert config.data.corpus == Files(name)
    assert build(RunConfig, read_yaml(yaml.safe_dump(to_plain(config), allow_unicode=True), "config.yaml")) == config


def test_a_path_as_corpus_is_that_path() -> None:
    assert read_config([], [("data.corpus", "reviews #1.txt")]).data.corpus == Files("reviews #1.txt")
    assert configured(("data.corpus", "A.CSV"), ("data.corpus.text", "010")).data.corpus == Files("A.CSV", text="010")


def test_text_in_quotes_is_read_without_them_and_null_unsets_a_setting_that_may_be_unset() -> None:
    assert configured(("data.corpus.train", "'a b'")).data.corpus == Files("a b")
    assert configured(("init_from", "007")).init_from == "007"
    assert configured(("init_from", "null")).init_from is None
    assert read_setting("x", "null", str) == "null"


@pytest.mark.parametrize(("text", "steps"), [("010", 10), ("08", 8), ("1_000", 1000), ("+5", 5)])
def test_numbers_are_decimal(text: str, steps: int, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"training: {{steps: {text}}}")
    assert configured(("training.steps", text)).training.steps == steps
    assert read_config([tmp_path / "a.yaml"]).training.steps == steps


@pytest.mark.parametrize("text", ["1:30", "0x10", "yes", "true", "5.5", "#5", "1e3", ".nan", "null"])
def test_what_is_no_whole_number_is_refused_where_one_is_expected(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"training: {{steps: {text} }}" if "#" not in text else "training:\n  steps: #5")
    assert refusal(lambda: configured(("training.steps", text))).startswith("training.steps: expected a")
    assert refusal(lambda: read_config([tmp_path / "a.yaml"])).startswith("training.steps: expected a")


@pytest.mark.parametrize("text", ["nan", ".nan", "inf", ".inf", "-.inf", "true", "[0.1]"])
def test_a_number_is_finite_and_no_truth_value(text: str) -> None:
    assert refusal(lambda: configured(("training.optimizer.learning_rate", text))).startswith(
        "training.optimizer.learning_rate: "
    )
    assert "expected a number, got true" in refusal(lambda: configured(("training.optimizer.betas", "[true, 0.9]")))


def test_an_infinite_default_of_a_component_is_allowed() -> None:
    @dataclass(frozen=True)
    class Endless(NoiseSchedule):
        end: float = math.inf

    assert build(Endless, to_plain(Endless())) == Endless()
    assert refusal(lambda: build(Endless, {"end": -math.inf})) == "end: expected a finite number, got -inf"


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("no", False), ("true", True), ("off", False)])
def test_a_switch_is_a_truth_value(text: str, value: bool) -> None:
    assert configured(("model.backbone", "transformer"), ("model.backbone.gated", text)).model == build(
        RunConfig, {"model": {"name": "diffusion", "backbone": {"name": "transformer", "gated": value}}}
    ).model  # fmt: skip


def test_flags_of_the_command_line_are_read_by_the_same_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--data.corpus", "reviews #1.txt", "--training.steps", "010"]) == 0
    plain = yaml.safe_load(capsys.readouterr().out)
    assert (plain["data"]["corpus"]["train"], plain["training"]["steps"]) == ("reviews #1.txt", 10)
    assert main(["show", "--training.steps", "1:30"]) == 2


# YAML files


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("training: {steps: 1}\nmodel: {}\ntraining: {seed: 2}\n", "line 3: 'training' is given twice, first on line 1"),
        ("training:\n  steps: 1\n  seed: 2\n  steps: 3\n", "line 4: 'steps' is given twice, first on line 2"),
        ("training: {steps: 1, steps: 2}", "line 1: 'steps' is given twice"),
        ("- a", "expected 'key: value' lines, got list"),
        ("false", "expected 'key: value' lines, got bool"),
        ("[" * 5000, "not valid YAML"),
        ("training: {steps: " + "9" * 5000 + "}", "not valid YAML"),
        (
            "data: {corpus: {name: files, train: 2024}}",
            "data.corpus.train: expected a valid string, got 2024; put it in quotes",
        ),
        ("data: {corpus: {name: files, train: a, attributes: [7]}}", "attributes.0: expected a valid string, got 7; put it"),
        (
            "data: {corpus: {name: files, train: true}}",
            "data.corpus.train: expected a valid string, got True; put it in quotes",
        ),
    ],
    ids=range(10),
)
def test_a_key_given_twice_and_a_value_of_another_type_are_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert sentence in refusal(lambda: read_config([tmp_path / "a.yaml"]))


def test_words_that_yaml_1_1_takes_for_other_values_are_text() -> None:
    plain = read_yaml("a: no\nb: 010\nc: 1:30\nd: 2024-01-01\ne: on\nf: 1_000\ng: 12\nh: 1.5\ni: true\nj: ~\nk: '12'", "here")
    assert plain == {
        "a": "no", "b": "010", "c": "1:30", "d": "2024-01-01", "e": "on", "f": "1_000",
        "g": 12, "h": 1.5, "i": True, "j": None, "k": "12",
    }  # fmt: skip
    assert read_yaml(yaml.safe_dump(plain), "here") == plain
    assert read_yaml("base: &b {x: 1, y: 2}\nother: {<<: *b, y: 3}", "here")["other"] == {"x": 1, "y": 3}


def test_a_setting_of_unknown_type_is_read_as_yaml() -> None:
    assert override({}, [("a.b", "[1, x]"), ("c", "010")]) == {"a": {"b": [1, "x"]}, "c": "010"}


# Control arguments


def test_the_short_form_of_a_control_takes_text_where_its_field_is_text() -> None:
    assert read_control("prefix=2024") == Prefix("2024")
    assert read_control("prefix=None") == Prefix("None")
    assert read_control("words=20") == Words("20")
    assert read_control("length=20") == Length(20)
    assert read_control("größe=klein") == read_control('Attribute("größe", "klein")')
    assert "expected a whole number of tokens, got '010'" in refusal(lambda: read_control("length=010"))


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ('Words("cheap" "pub")', 'expected a comma between "cheap" and "pub"'),
        ('Length(3, **{"high": 5})', "is no argument"),
        ("Length(low=3, low=5)", "low=5 is given twice"),
        ("food=Caf\udce9", "U+DCE9, half a surrogate pair"),
        ('Words("a\0b")', "U+0000, a control character"),
    ],
)
def test_arguments_that_python_would_join_or_drop_are_refused(expression: str, sentence: str) -> None:
    assert sentence in refusal(lambda: read_control(expression))


# Labels and figures


def labelled(labels: Sequence[str]) -> list[Labelled]:
    return [Labelled([1, 5, 2], {"mood": label}) for label in labels]


def test_labels_below_min_count_are_reported_with_their_counts(capsys: pytest.CaptureFixture[str]) -> None:
    rows = labelled(["good"] * 30 + ["bad"] * 9 + [""])
    assert TextLabels().values(rows, "mood", 20) == ["good", "other"]
    said = "labels: 1 of 2 values of 'mood' have fewer than min_count = 20 labels and count as 'other': 'bad' (9)\n"
    assert capsys.readouterr().err == said
    assert TextLabels().too_few(labelled(["good"] * 16 + ["bad"] * 14), "mood", 20) == (
        "labels: expected two values of 'mood' or more in the training texts, got 'good' (16), 'bad' (14); "
        "min_count is 20, and rarer labels count as 'other'"
    )


def test_the_accuracy_on_texts_without_labels_is_absent_and_said_to_be() -> None:
    unknown = value_measures(torch.zeros(2, 2, dtype=torch.long))
    assert all(math.isnan(figure) for figure in unknown.values())
    assert math.isnan(span_measures(torch.tensor([[5, 1], [0, 0]]))["f1"])
    known = value_measures(torch.tensor([[3, 1], [0, 4]]))
    rows = [(name, {key: [figure] * len(LOG_SNRS) for key, figure in found.items()}) for name, found in
            (("mood", unknown), ("food", known), ("area", known))]  # fmt: skip
    accuracy = Accuracy("sequence", "noisy", 8, dict(rows))
    plain: dict[str, Any] = json.loads(json.dumps(accuracy.plain(), allow_nan=False))
    assert plain["scores"]["mood"]["accuracy"] == [None] * len(LOG_SNRS)
    assert plain["scores"]["mean"]["accuracy"] == plain["scores"]["food"]["accuracy"] == [0.875] * len(LOG_SNRS)
    assert "  mood     not measured: no held-out text has a label that the training texts have" in accuracy.table()
    assert "0.0" not in next(line for line in accuracy.table().splitlines() if "mood" in line)
    pytest.importorskip("matplotlib")
    assert accuracy.figure().axes[0].lines[0].get_label() == "mood (not measured)"


@pytest.mark.parametrize(
    ("labels", "wrong", "expected"),
    [
        (TextLabels(), ["a"], "a word or a number"),
        (TextLabels(), {"a": "b"}, "a word or a number"),
        (TokenLabels(), "DET", "a list of words"),
        (SpanLabels(), ["S"], "a bracketed tree"),
    ],
)
def test_a_label_of_another_kind_is_refused_in_any_row_of_any_split(labels: Labels, wrong: Any, expected: str) -> None:
    tokenizer = WordTokenizer().make(["one"])
    rows = to_dataset([{"text": "one", "x": None}, {"text": "one", "x": wrong}]).select([1])
    encoded = encode(["one"], tokenizer)
    sentence = f"labels: text 0 ('one'): head {labels.head!r} expects {expected}, got"
    assert sentence in refusal(lambda: labels.read(rows, encoded, tokenizer, [Field("x")]))


def test_attributes_that_are_numbers_are_targets_as_text_and_zero_is_one() -> None:
    reader = Reader(WordTokenizer().make(["one"]), Plain())
    stated = {"price": 10, "stars": 0, "food": "Thai", "near": "", "area": None, "rating": math.nan}
    assert reader.attributes({"text": "one", "attributes": stated}) == {"price": "10", "stars": "0", "food": "Thai"}
