"""Requests of the demo: from the fields of the form to controls, and the bounds of what a visitor may ask for."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from tiny_runs import ROOT, restaurant_texts

from diffusionlm.config import UserError
from diffusionlm.controls import Infill, read_controls
from diffusionlm.data.tokenizers import split_words
from diffusionlm.demo.form import Form, number
from diffusionlm.demo.models import DemoModel, open_model
from diffusionlm.demo.requests import DemoRequest, form_controls, gapped, read_safely
from diffusionlm.pipelines.diffusion import Pipeline

STORED = ROOT / "tests" / "golden" / "format-1"
TEXTS = restaurant_texts(60)


@pytest.fixture(scope="module")
def model() -> DemoModel:
    return open_model(str(STORED))


def test_the_drop_downs_are_the_labels_of_the_models_classifier(model: DemoModel) -> None:
    fields = {field.label: field for field in model.fields}
    assert {*fields} == {"food", "price"}
    assert "Japanese" in fields["food"].values and not {"", "other"} & {*fields["food"].values}
    assert str(fields["food"].control("Thai")) == 'Attribute("food", "Thai")'


def test_each_entry_of_the_form_is_one_control(model: DemoModel) -> None:
    chosen = ["Thai" if field.label == "food" else None for field in model.fields]
    found = form_controls(
        model, chosen, 8, 14, "pub, near the river", ' cheap ,"', 'Words("inn") | Words("pub")\n\n food=Thai', "A {} pub ."
    )
    assert found == (
        'Infill("A {} pub .")', 'Attribute("food", "Thai")', "Length(8, 14)", 'Words("pub")', 'Words("near the river")',
        '~Words("cheap")', '~Words("\\"")', 'Words("inn") | Words("pub")', "food=Thai",
    )  # fmt: skip
    assert [str(control) for control in read_controls(found)][:-1] == [*found[:-1]]
    assert form_controls(model) == ()
    assert form_controls(model, shortest=5) == (f"Length(5, {model.longest})",)
    assert form_controls(model, longest=5, shortest=5) == ("Length(5)",)


def test_empty_entries_are_the_models_own_settings(model: DemoModel) -> None:
    names = ("field 0", "shortest", "include", "expressions", "count", "seed", "temperature", "evaluations", "tries")
    form = Form(model, dict.fromkeys(names))
    values = {**dict.fromkeys(names, ""), "field 0": "any", "evaluations": "the model's own", "count": 3, "tries": 1.0}
    assert form.request([*values.values()]) == DemoRequest(count=3)
    changed = {**values, "seed": "7", "temperature": "0.9", "evaluations": 16, "shortest": "4"}
    expected = DemoRequest(3, (f"Length(4, {model.longest})",), seed=7, temperature=0.9, evaluations=16)
    assert form.request([*changed.values()]) == expected
    with pytest.raises(UserError, match=r"seed: expected a whole number from 0 to 2147483647 in the demo, got 0\.5"):
        form.request([*{**values, "seed": "0.5"}.values()])
    with pytest.raises(UserError, match="length: expected a whole number from 1 to 62 in the demo, got 'few'"):
        form.request([*{**values, "shortest": "few"}.values()])


def test_numbers_that_a_visitor_types() -> None:
    assert [number(value) for value in ("7", "0.5", "1e3", 4.0, 0.5, "x")] == [7, 0.5, 1000.0, 4, 0.5, "x"]
    assert isinstance(number(4.0), int)


@pytest.mark.parametrize("same_size", [False, True])
def test_a_text_fills_its_own_gaps(same_size: bool, model: DemoModel) -> None:
    assert isinstance(model.pipeline, Pipeline)
    for place, text in enumerate([*TEXTS, "a {b} c } don't", "1,000 pubs (cheap) cost £5."]):
        count = len(split_words(text))
        removed = [number for number in range(count) if (number * 7 + place) % 3]
        template = gapped(text, removed, same_size)
        assert Infill(template).score([text], model.pipeline.binding) == [1.0], (text, template)


def test_adjacent_words_are_one_gap() -> None:
    text = "The Golden Lion is a pub."
    assert gapped(text, [1, 2, 5]) == "The {} is a {} ."
    assert gapped(text, [2, 1, 5], same_size=True) == "The {2} is a {1} ."
    assert gapped(text, range(7)) == "{}"
    assert gapped("a {0} b", [0]).replace("{{", "").count("{}") == 1
    for wrong in ([], [7], [-1]):
        with pytest.raises(UserError, match="words: expected words of the text to remove, of 7, got"):
            gapped(text, wrong)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"count": 17}, "count: expected a whole number from 1 to 16 in the demo, got 17"),
        ({"count": 0}, "count: expected a whole number from 1 to 16 in the demo, got 0"),
        ({"count": True}, "count: expected a whole number from 1 to 16 in the demo, got True"),
        ({"seed": -1}, "seed: expected a whole number from 0 to 2147483647 in the demo, got -1"),
        ({"evaluations": 257}, "evaluations: expected a whole number from 1 to 256 in the demo, got 257"),
        ({"temperature": float("nan")}, "temperature: expected a number from 0.1 to 3 in the demo, got nan"),
        ({"strength": float("inf")}, "strength: expected a number from 0 to 10 in the demo, got inf"),
        ({"level": 1.5}, "level: expected a number from 0 to 1 in the demo, got 1.5"),
        ({"tries": 11}, "tries: expected a whole number from 1 to 10 in the demo, got 11"),
        ({"length": "ten"}, "length: expected a whole number from 1 to 10000 in the demo, got 'ten'"),
        ({"controls": ("Length(3)",) * 17}, "controls: expected at most 16 in the demo, got 17"),
        ({"controls": ("Length(3)" + " " * 1000,)}, "controls: expected at most 1,000 characters in the demo, got 1,009"),
        ({"text": "a\nb"}, r"text: expected a text of one line, got 'a\\nb'"),
        ({"source": "a" * 1001}, "source: expected at most 1,000 characters in the demo, got 1,001"),
        ({"condition": {"food": 5}}, "condition: expected a text of one line, got 5"),
    ],
)
def test_what_is_out_of_bounds_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence}$"):
        DemoRequest(**given)


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("antigravity:Thing(3)", "'antigravity:Thing' is code from outside the library"),
        ('Reward("os:getcwd")', "the demo calls no functions"),
        ('~(Length(3) & Reward("os:getcwd"))', "the demo calls no functions"),
        (
            '2 * Classifier("x", "/etc")',
            "classifier: expected the name of one of the model's classifiers in the demo, got '/etc'",
        ),
        (
            'Classifier("low", "pty:spawn")',
            "classifier: expected the name of one of the model's classifiers in the demo, got 'pty:spawn'",
        ),
        ('Attribute("food", "x", "../x")', r"classifier: expected the name of one .* got '\.\./x'"),
        ('Span(1, 2, "NP", tags="/etc/x")', "tags: expected the name of one .* got '/etc/x'"),
        ("Lenght(3)", "did you mean 'Length'"),
    ],
)
def test_a_visitor_names_no_code_and_no_folder(expression: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_safely([expression])
    assert "antigravity" not in sys.modules


def test_controls_of_the_library_are_read() -> None:
    given = ['Pattern("a .*") | Length(3)', 'PartsOfSpeech("DET NOUN")', 'Span(1, 2, "NP")', "food=Thai"]
    assert [*read_safely(given)] == [*read_controls(given)]
