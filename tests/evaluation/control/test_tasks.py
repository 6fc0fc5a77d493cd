"""Targets: what is drawn from held-out texts, files of the user's own, configs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import ROOT, restaurant_texts

from diffusionlm.config import UserError, build, to_plain
from diffusionlm.controls import Attribute, Binding, Infill, Length, PartsOfSpeech, Span, Tree, Words
from diffusionlm.data.annotators import Plain, Reader
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.data.trees import brackets
from diffusionlm.evaluation.control.tasks import FileTargets, Target, Task, TaskConfig, read_tasks
from diffusionlm.restaurants.annotator import Grammar
from diffusionlm.restaurants.corpus import Restaurants

CONFIGS = sorted((ROOT / "configs" / "control").glob("*.yaml"))
READER = Reader(WordTokenizer().make(restaurant_texts(800, "train")), Grammar())
ATTRIBUTES = {"name": "attributes", "fields": ["food", "price"]}


@pytest.fixture(scope="module")
def rows() -> Any:
    return Restaurants().load()["test"]


def drawn(plain: object, rows: Any, count: int = 12, seed: int = 0, reader: Reader = READER) -> list[Target]:
    return build(Task, plain).targets(rows, reader, seed, count)


@pytest.mark.parametrize(
    ("plain", "kind"),
    [
        (ATTRIBUTES, Attribute),
        ("tags", PartsOfSpeech),
        ("tree", Tree),
        ("span", Span),
        ("length", Length),
        ("infill", Infill),
    ],
)
def test_the_text_that_a_target_comes_from_meets_it(plain: object, kind: type, rows: Any) -> None:
    nothing: Any = None
    binding, texts = Binding(nothing, READER.tokenizer, None, Grammar()), set(rows["text"])
    targets = drawn(plain, rows)
    for target in targets:
        (control,) = target.controls
        assert type(control) is kind and target.reference in texts
        assert control.score([target.reference or ""], binding) == [1.0]
    assert len({target.reference for target in targets}) == len(targets)
    assert drawn(plain, rows) == targets == drawn(plain, rows, 20)[:12]
    assert drawn(plain, rows, seed=1) != targets


def test_no_gap_is_drawn_around_words_that_cannot_be_written(rows: Any) -> None:
    few = Reader(WordTokenizer(min_count=20).make(restaurant_texts(800, "train")), Grammar())
    known = few.tokenizer.get_vocab()
    for target in drawn("infill", rows, 3, reader=few):
        ids = few.tokenizer(target.reference or "")["input_ids"]
        assert few.tokenizer.unk_token_id not in ids and len(known) < len(READER.tokenizer.get_vocab())


def test_what_each_kind_draws(rows: Any) -> None:
    assert {t.controls[0].field for t in drawn(ATTRIBUTES, rows)} == {"food", "price"}  # type: ignore[attr-defined]
    two = drawn({"name": "attributes", "count": 2}, rows)
    assert all(len({c.field for c in target.controls}) == 2 for target in two)  # type: ignore[attr-defined]
    asked = [target.controls for target in drawn({**ATTRIBUTES, "distinct": True}, rows, 15)]
    assert len(set(asked)) == 15 > len({target.controls for target in drawn(ATTRIBUTES, rows, 15)})
    for target in drawn("span", rows):
        (span,) = target.controls
        assert isinstance(span, Span) and target.reference and span.first < span.last
        found = Grammar().annotate(target.reference)
        assert found and found.tree and (span.first, span.last, span.label) in brackets(found.tree)
    sizes = set()
    for target in drawn({"name": "infill", "hidden": [2, 3], "context": 4}, rows, 30):
        gap = target.gap
        assert gap and gap.filled(gap.hidden) == target.reference
        assert min(len(gap.left.split()), len(gap.right.split())) >= 4
        sizes.add(len(gap.hidden.split()))
    assert sizes == {2, 3}
    for target in drawn({"name": "infill", "told": True}, rows):
        (infill,) = target.controls
        assert isinstance(infill, Infill) and re.search(r"{\d+}", infill.template)
        binding = Binding(None, READER.tokenizer)  # type: ignore[arg-type]
        assert infill.score([target.reference or ""], binding) == [1.0]
        language = infill.compile(binding).automaton
        assert language is not None and language.lengths(60) == [READER.length({"text": target.reference})]


def test_a_composition_asks_all_of_one_text(rows: Any) -> None:
    for target in drawn({"name": "composed", "tasks": [ATTRIBUTES, "tree", "infill"]}, rows):
        attribute, tree, infill = target.controls
        assert isinstance(attribute, Attribute) and isinstance(tree, Tree) and isinstance(infill, Infill)
        found = Grammar().annotate(target.reference or "")
        assert found and found.attributes and found.attributes[attribute.field] == attribute.value and found.tree == tree.tree
        assert target.gap and target.gap.filled(target.gap.hidden) == target.reference


def test_labels_come_from_the_annotator_where_the_corpus_has_none(rows: Any) -> None:
    bare = rows.remove_columns([name for name in rows.column_names if name != "text"])
    for plain in (ATTRIBUTES, "tags", "tree", "span"):
        assert drawn(plain, bare) == drawn(plain, rows)
    with pytest.raises(UserError, match="targets: expected at most 0, as many as these texts give, got 12"):
        drawn("tags", bare, reader=Reader(READER.tokenizer, Plain()))


def test_the_test_split_holds_no_combination_of_training(rows: Any) -> None:
    def combination(row: dict[str, str]) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((k, v) for k, v in row.items() if k not in ("name", "near")))

    training = {combination(row) for row in Restaurants().load()["train"]["attributes"]}
    assert not any(combination(row) in training for row in rows["attributes"])


def test_a_file_of_targets(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    given: list[dict[str, Any]] = [
        {"controls": ["food=Japanese", "Length(5)"], "reference": "A Japanese pub is here.", "task": "both"},
        {"controls": 'Words("cheap")'},
        {"controls": ["length=7"], "task": "both"},
    ]
    path.write_text("\n\n".join(map(json.dumps, given)))
    both, mine = read_tasks(path)
    assert (both.title, both.targets, mine.title, mine.targets) == ("both", 2, "mine", 1)
    first, second = both.task.targets(None, READER, 0, 9)
    assert first == Target((Attribute("food", "Japanese"), Length(5)), given[0]["reference"], None, f"{path}, line 1")
    assert (second.controls, second.reference, second.place) == ((Length(7),), None, f"{path}, line 5")
    assert both.task.targets(None, READER, 0, 1) == [first]
    assert mine.task.targets(None, READER, 0, 9)[0].controls == (Words("cheap"),)
    assert len(FileTargets(str(path)).targets(None, READER, 0, 9)) == 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '{"controls": ["Length(5)"]}\n\n{"controls": ["Lenght(5)"]}',
            "line 3: control: no control is called 'Lenght'; did you",
        ),
        ('{"controls": ["Length(5)"]}\n{"controls": [}', "line 2: expected a JSON object on each line"),
        ('{"control": ["Length(5)"]}', "line 1: expected an object with 'controls'"),
        ('{"controls": ["Length(5)"], "refrence": "A."}', "line 1: there is no such key 'refrence'"),
        ('{"controls": ["Length(5)"], "reference": 5}', "line 1: reference: expected text, got 5"),
        ("", "there is no target in it"),
    ],
)
def test_a_bad_file_of_targets_is_reported_with_its_line(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "targets.jsonl"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_tasks(path)
    assert sentence in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("task: tres", "task: no task is called 'tres'; did you mean 'tree'?"),
        ("task: tree\nsample: 3", "sample: there is no such setting; did you mean 'samples'?"),
        ("task: tree\nsamples: 0", "samples: expected at least 1, got 0"),
        ("task: {name: infill, hidden: [3, 2]}", "hidden: expected 1 or more, the fewest words before the most, got [3, 2]"),
        ("task: {name: composed, tasks: []}", "tasks: expected at least one"),
        ("samples: 3", "task: this setting is needed"),
        ("- controls: [Length(2)]\n- 3", "target 2: expected an object with 'controls'"),
    ],
)
def test_a_bad_task_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_tasks(path)
    assert sentence in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_a_task(path: Path, rows: Any) -> None:
    (task,) = read_tasks(path)
    assert (task.title, task.split, task.targets, task.samples) == (path.stem, "test", 200, 50)
    assert build(TaskConfig, to_plain(task)) == task
    if not path.stem.startswith("e2e"):
        assert isinstance(task.corpus, Restaurants)
        assert len(task.task.targets(rows, READER, task.seed, task.targets)) == 200


def test_settings_of_a_task_can_be_changed(tmp_path: Path) -> None:
    (task,) = read_tasks(ROOT / "configs" / "control" / "e2e-parts-of-speech.yaml", [("annotator.folder", "elsewhere")])
    assert to_plain(task.annotator) == {"name": "tagger", "folder": "elsewhere"}
