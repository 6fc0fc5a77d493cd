"""The language of controls: what an expression reads as, what is refused, how controls combine, and what they check."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from diffusionlm.config import UserError
from diffusionlm.constraints.dfa import one_of
from diffusionlm.controls import (
    All,
    AnyOf,
    Attribute,
    Binding,
    CompiledControl,
    Control,
    Not,
    PartsOfSpeech,
    Reward,
    Span,
    Tree,
    Weighted,
    outcomes,
    read_control,
    read_controls,
    target_rows,
)
from diffusionlm.controls.parts_of_speech import tag_accuracy
from diffusionlm.core.guidance import GuidanceState
from diffusionlm.core.sampler import Denoised
from diffusionlm.data.annotators import Annotation, Annotator
from diffusionlm.data.trees import bracket_f1, brackets, tags_of
from diffusionlm.restaurants.annotator import Grammar
from diffusionlm.restaurants.corpus import Restaurants


@dataclass(frozen=True)
class Fixed(Control, name="fixed"):
    """A control of one token of a set, or a constant chance, or a reward; passes texts that hold a word."""

    kind: str
    value: float = 0.5
    word: str = "yes"

    def compile(self, binding: Binding) -> CompiledControl:
        if self.kind == "language":
            return CompiledControl(automata=(one_of([int(self.value)], 6),))
        if self.kind == "energy":
            return CompiledControl(energies=(lambda belief: torch.full((len(belief.t),), -math.log(self.value)),))
        return CompiledControl(rewards=(lambda texts: torch.full((len(texts),), self.value),))

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        return [1.0 if self.word in text else 0.25 for text in texts]


ATTRIBUTE, REWARD = Attribute("food", "Japanese"), Reward("math:sqrt")


@pytest.mark.parametrize(
    ("expression", "control"),
    [
        ('Attribute("food", "Japanese")', ATTRIBUTE),
        ("Attribute(field='food', value='Japanese')", ATTRIBUTE),
        ("food=Japanese", ATTRIBUTE),
        (" food = Japanese ", ATTRIBUTE),
        ("family friendly=yes", Attribute("family friendly", "yes")),
        ('Attribute("food", "Japanese") & Reward("math:sqrt")', All((ATTRIBUTE, REWARD))),
        ('food=Japanese & ~Reward("math:sqrt")', None),
        ('~Reward("math:sqrt")', Not(REWARD)),
        ('~~Reward("math:sqrt")', REWARD),
        ('2 * Reward("math:sqrt") | Span(0, 2, "NP")', AnyOf((Weighted(REWARD, 2.0), Span(0, 2, "NP")))),
        ('Reward("math:sqrt") * 0.5', Weighted(REWARD, 0.5)),
        ('(Span(0, 1, "NP") | Span(0, 2, "NP")) & Reward("a & b: (c", 1)', None),
        ('PartsOfSpeech("DET NOUN", least=0.5)', PartsOfSpeech("DET NOUN", 0.5)),
        ('~(0.1234567 * Reward("math:sqrt"))', Not(Weighted(REWARD, 0.1234567))),
        ('2 * (3 * Reward("math:sqrt"))', Weighted(Weighted(REWARD, 3), 2)),
    ],
)
def test_expressions_are_read(expression: str, control: Control | None) -> None:
    if control is None and expression.startswith("food"):
        with pytest.raises(UserError, match="is not an expression"):
            read_control(expression)
        return
    found = read_control(expression)
    assert control is None or found == control
    assert read_control(str(found)) == found


def test_a_control_is_read_as_itself_and_one_expression_as_one() -> None:
    assert read_control(ATTRIBUTE) is ATTRIBUTE
    assert read_controls("food=Japanese") == read_controls(["food=Japanese"]) == read_controls(ATTRIBUTE) == (ATTRIBUTE,)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("Atribute('food', 'Thai')", "no control is called 'Atribute'; did you mean 'Attribute'"),
        ("Attribute('food')", "Attribute missing 1 required positional argument: 'value'"),
        ("Attribute", "expected arguments in brackets after Attribute"),
        ("__import__('os').system('true')", "is no control"),
        ("Attribute(open('x'), 'y')", "no control is called 'open'"),
        ("Attribute(food, 'y')", "food is no plain value; put words in quotes"),
        ("Attribute('food', 'Thai') and Attribute('price', 'low')", "is no control"),
        ("Attribute('food', 'Thai'", "is not an expression such as"),
        ("-1 * Attribute('food', 'Thai')", "expected a weight of 0 or more; for the opposite write ~"),
        ("1e400 * Attribute('food', 'Thai')", "expected a weight of 0 or more"),
        ("Attribute('food', 4)", "value: expected text in quotes, got 4"),
        ("Span(0.5, 2, 'NP')", "first: expected a whole number, got 0.5"),
        ("PartsOfSpeech(3)", "PartsOfSpeech\\(3\\)': "),
        ("food=Japanese & Length(3)", r'a short form stands alone; here write Attribute\("food", "Japanese"\)'),
        ("~" * 3000 + "Length(3)", "is not an expression such as"),
        ("a._colon_.B(3)", "cannot import the control 'a:B'"),
        ("Length({[1]: 2})", "is no plain value"),
        ("nowhere.at_all:Thing(3)", "cannot import the control 'nowhere.at_all:Thing'"),
        ("math:sqrt(3)", "'math:sqrt' is no control"),
        ("Span(3, 2, 'NP')", "expected two words counted from 0"),
        ("Tree('(S (NP')", "tree: expected one tree"),
        ("PartsOfSpeech('')", "tags: expected tags such as"),
    ],
)
def test_mistakes_are_one_sentence(expression: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_control(expression)


@pytest.mark.parametrize("given", [5, None, [5], [{"food": "Thai"}]])
def test_what_is_no_expression_is_refused(given: Any) -> None:
    with pytest.raises(UserError, match=r"^control: expected an expression such as food=Japanese or Length\(20\), got"):
        read_controls(given)


def test_a_third_party_control_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from diffusionlm.controls import CompiledControl, Control\n"
        "@dataclass(frozen=True)\n"
        "class Shout(Control):\n"
        "    marks: int = 1\n"
        "    def compile(self, binding): return CompiledControl()\n"
        "    def score(self, texts, binding): return [float(t.count('!') >= self.marks) for t in texts]\n"
    )
    program = (
        "from diffusionlm.controls import read_control, outcomes\n"
        "control = read_control('mine:Shout(2) & ~mine:Shout(3)')\n"
        "assert read_control(str(control)) == control, str(control)\n"
        "print([o[0].passed for o in outcomes([control], ['a!', 'b!!', 'c!!!'], None)])\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.stdout == "[False, True, False]\n", run.stderr


@pytest.fixture
def binding() -> Binding:
    return Binding(None, None, None, Grammar())  # type: ignore[arg-type]  # no control of these tests reads model or tokenizer


def _belief(logits: Tensor) -> GuidanceState:
    mask = torch.ones(logits.shape[:2], dtype=torch.bool)
    x0 = torch.zeros(*mask.shape, 2)
    return GuidanceState(x0, torch.zeros(len(logits)), mask, lambda: Denoised(x0, logits))


def test_languages_combine_as_sets(binding: Binding) -> None:
    one, two = Fixed("language", 1), Fixed("language", 2)
    both = (one & two).compile(binding).automaton
    either, neither = (one | two).compile(binding).automaton, (~(one | two)).compile(binding).automaton
    assert both is not None and either is not None and neither is not None
    assert both.lengths(5) == []
    assert either.contains([1]) and either.contains([2]) and not either.contains([3])
    assert not neither.contains([1]) and neither.contains([3]) and neither.contains([1, 1])


def test_energies_combine_as_independent_events(binding: Binding) -> None:
    one, other = Fixed("energy", 0.3), Fixed("energy", 0.4)
    belief = _belief(torch.zeros(1, 3, 6))

    def chance(control: Control) -> float:
        return math.exp(-sum(float(energy(belief)) for energy in control.compile(binding).energies))

    assert chance(one & other) == pytest.approx(0.12, rel=1e-5)
    assert chance(one | other) == pytest.approx(0.58, rel=1e-5)
    assert chance(~one) == pytest.approx(0.7, rel=1e-5)
    assert chance(2 * one) == pytest.approx(0.09, rel=1e-5)
    assert chance(~(one & other)) == pytest.approx(0.88, rel=1e-5)


def test_an_automaton_beside_an_energy_counts_with_its_probability(binding: Binding) -> None:
    """Of one free word (between start and end) token 1 has chance 1/6; with p = .3 at least one of both is .4167."""
    compiled = (Fixed("language", 1) | Fixed("energy", 0.3)).compile(binding)
    assert not compiled.automata
    energy = compiled.energies[0](_belief(torch.zeros(1, 3, 6)))
    assert math.exp(-float(energy)) == pytest.approx(1 - 0.7 * 5 / 6, rel=1e-5)


def test_rewards_add_up_and_take_the_best(binding: Binding) -> None:
    one, other = Fixed("reward", 0.3), Fixed("reward", 0.4)

    def rewards(control: Control) -> list[float]:
        return [float(reward(["a"])) for reward in control.compile(binding).rewards]

    assert rewards(one & other) == pytest.approx([0.3, 0.4])
    assert rewards(one | other) == pytest.approx([0.4])
    assert rewards(~one) == pytest.approx([-0.3])
    assert rewards(3 * one) == pytest.approx([0.9])
    with pytest.raises(UserError, match="can only be combined so with other rewards"):
        rewards(one | Fixed("language", 1))


def test_outcomes_follow_the_algebra(binding: Binding) -> None:
    yes, maybe = Fixed("energy"), Fixed("energy", word="perhaps")
    controls = [yes, yes & maybe, yes | maybe, ~yes, 2 * maybe]
    (first, second) = outcomes(controls, ["yes", "yes, perhaps"], binding)
    assert [o.passed for o in first] == [True, False, True, False, False]
    assert [o.score for o in first] == [1, 0.25, 1, 0, 0.25]
    assert [o.passed for o in second] == [True, True, True, False, True]
    assert first[3].control == '~Fixed("energy")'


@dataclass(frozen=True)
class Judged(Control, name="judged"):
    """A control that nothing acts on; its ``scores`` are what is tested."""

    scores: Any = ()

    def compile(self, binding: Binding) -> CompiledControl:
        return CompiledControl()

    def score(self, texts: Sequence[str], binding: Binding) -> list[float]:
        return cast(list[float], self.scores)


def test_scores_of_any_number_type_are_taken_and_others_refused(binding: Binding) -> None:
    ((first,), (second,)) = outcomes([Judged(torch.tensor([1.0, 0.5]))], ["a", "b"], binding)
    assert (first.passed, second.passed) == (True, False)
    assert json.loads(json.dumps([first.score, second.score])) == [1.0, 0.5]
    ((first,), (second,)) = outcomes([Judged([1.0, None])], ["a", "b"], binding)
    assert (first.passed, second.passed, second.score) == (True, None, None)
    for wrong in ([1.0], [1.0, math.nan], [1.0, "yes"]):
        with pytest.raises(UserError, match="score: expected a finite number for each of 2 texts"):
            outcomes([Judged(wrong)], ["a", "b"], binding)


@pytest.mark.parametrize("asked", [Judged() | Fixed("language", 1), Judged() | Judged(), ~Judged(), Judged() | Fixed("energy")])
def test_what_is_only_checked_stands_beside_no_bar_and_behind_no_tilde(binding: Binding, asked: Control) -> None:
    with pytest.raises(UserError, match="is only checked, nothing acts on it"):
        asked.compile(binding)
    assert (Judged() & Fixed("language", 1)).compile(binding).automaton == one_of([1], 6)


def test_targets_are_read_from_json_lines_and_yaml(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"controls": ["food=Japanese", "Span(0, 2, \\"NP\\")"]}\n\n{"controls": "food=Thai"}\n')
    (tmp_path / "t.yaml").write_text("- controls: [food=Japanese, 'Span(0, 2, \"NP\")']\n- controls: food=Thai\n")
    expected = [(ATTRIBUTE, Span(0, 2, "NP")), (Attribute("food", "Thai"),)]
    assert (
        [row[2] for row in target_rows(tmp_path / "t.jsonl")]
        == [row[2] for row in target_rows(tmp_path / "t.yaml")]
        == expected
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", '{"controls": ["food=Thai"]}\n{"control": 1}', "t.jsonl, line 2: expected an object with 'controls'"),
        ("t.jsonl", '{"controls": ["Foo(1)"]}', "t.jsonl, line 1: control: no control is called 'Foo'"),
        ("t.jsonl", "{", "t.jsonl, line 1: expected a JSON object on each line"),
        ("t.yaml", "- [", "t.yaml: not valid YAML"),
        ("none.yaml", None, "none.yaml: there is no such file"),
    ],
)
def test_bad_targets_are_reported_with_their_place(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        target_rows(tmp_path / name)


# Checks


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    return [dict(row) for row in Restaurants().load()["test"].select(range(40))]


def test_gold_texts_pass_their_own_checks(rows: list[dict[str, object]], binding: Binding) -> None:
    for row in rows:
        text, attributes = str(row["text"]), row["attributes"]
        assert isinstance(attributes, dict) and isinstance(row["tags"], list)
        controls: list[Control] = [Attribute(field, value) for field, value in attributes.items() if value]
        controls += [PartsOfSpeech(" ".join(row["tags"])), Tree(str(row["tree"]))]
        controls += [Span(*bracket) for bracket in brackets(str(row["tree"])) if bracket[0] < bracket[1]]
        assert all(outcome.passed for outcome in outcomes(controls, [text], binding)[0])


def test_wrong_texts_fail_them(rows: list[dict[str, object]], binding: Binding) -> None:
    text = "The Green Bell is a Greek tavern, and a meal costs under £20."
    for control in (Attribute("food", "Thai"), Attribute("price", "high"), Attribute("family", "yes"), Span(0, 1, "NP")):
        assert control.score([text], binding) == [0.0]
    assert Attribute("price", "low").score([text, text.replace("under £20", "over £50")], binding) == [1.0, 0.0]
    assert Span(0, 2, "NP").score([text, "The Green Bell"], binding) == [1.0, 0.0]
    scores = [Tree(str(row["tree"])).score([text], binding)[0] or 0 for row in rows]
    assert max(scores) < 1 and 0 < sum(scores) / len(scores) < 0.6


def test_a_text_outside_the_grammar_is_searched_for_the_value(binding: Binding) -> None:
    text = "near Burger King you find cheap japanese food"
    assert Attribute("food", "Japanese").score([text], binding) == [1.0]
    assert Attribute("near", "Café Rouge").score([text], binding) == [0.0]
    assert Attribute("type", "inn").score(["we serve dinner"], binding) == [0.0], "words, not letters"


def test_trees_are_compared_by_labelled_f1() -> None:
    tree = "(ROOT (S (NP (PRON It)) (VP (AUX is) (ADJP (ADV very) (ADJ cheap))) (PUNCT .)))"
    assert brackets(tree) == [(0, 4, "S"), (0, 0, "NP"), (1, 3, "VP"), (2, 3, "ADJP")]
    assert tags_of(tree) == ["PRON", "AUX", "ADV", "ADJ", "PUNCT"]
    assert bracket_f1(brackets(tree), brackets(tree)) == 1
    other = "(ROOT (S (NP (PRON It)) (VP (AUX is) (ADV very) (ADJP (ADJ cheap))) (PUNCT .)))"
    assert bracket_f1(brackets(tree), brackets(other)) == pytest.approx(2 * 3 / 8)


@pytest.mark.parametrize(
    ("wanted", "found", "score"),
    [
        ("A B C D", "A B C D", 1),
        ("A B C D", "A B C X Y Z", 0.75),
        ("A B C D", "A B", 0.5),
        ("A B C D", "A B C D E", 0.8),
        ("A * C", "A B C", 1),
        ("A ... C", "A C", 1),
        ("A ... C", "A B B C", 1),
        ("... C", "A B", 0),
        ("A * ... C", "A C", 0),
    ],
)
def test_tags_are_counted_over_the_gold_length(wanted: str, found: str, score: float) -> None:
    assert tag_accuracy(wanted.split(), found.split()) == pytest.approx(score)


def test_a_reward_passes_from_its_mark_on(binding: Binding) -> None:
    reward = Reward(lambda texts: [len(text) / 10 for text in texts], passes=0.5)
    assert reward.score(["abcde", "ab", "a" * 30], binding) == pytest.approx([1.0, 0.4, 1.0])
    with pytest.raises(UserError, match="expected a finite score for each of 2 texts"):
        Reward(lambda texts: [0.5]).score(["a", "b"], binding)
    with pytest.raises(UserError, match="cannot import 'nowhere:at_all'"):
        Reward("nowhere:at_all").compile(binding)


@dataclass(frozen=True)
class _Spaces(Annotator, name="spaces-for-test"):
    """Every word is an X."""

    def annotate(self, text: str) -> Annotation | None:
        words = tuple(text.split())
        return Annotation(words, ("X",) * len(words)) if words else None


def test_another_annotator_checks_other_texts() -> None:
    binding = Binding(None, None, annotator=_Spaces())  # type: ignore[arg-type]
    assert PartsOfSpeech("X X").score(["a b", "a", ""], binding) == [1.0, 0.5, 0.0]
    assert Tree("(S (X a) (X b))").score(["a b"], binding) == [None]
    assert Grammar().annotate("a b") is None
