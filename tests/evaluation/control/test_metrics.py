"""Metrics of control against truths that can be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
from test_judge import made
from tiny_runs import restaurant_texts

from diffusionlm.controls import Attribute, Binding, Infill, Length, PartsOfSpeech, Span, Tree, Weighted
from diffusionlm.controls.parts_of_speech import tag_matches
from diffusionlm.data.annotators import Annotation, Annotator, Plain
from diffusionlm.data.tokenizers import WordTokenizer
from diffusionlm.evaluation.control.metrics import (
    ALL,
    SCORE,
    Estimate,
    bleu_4,
    filling,
    metric_order,
    over_targets,
    perplexity_over_targets,
    rouge_l,
    target_metrics,
)
from diffusionlm.evaluation.control.tasks import Gap, Target
from diffusionlm.evaluation.judge import perplexity
from diffusionlm.restaurants import grammar
from diffusionlm.restaurants.annotator import Grammar

TEXT = "The Golden Lion is a cheap pub near the old bridge. The staff are friendly."
UNSAID = "The Golden Lion is is a pub."


@dataclass(frozen=True)
class Spelled(Annotator):
    """Takes each word for its tag."""

    def annotate(self, text: str) -> Annotation:
        return Annotation(tuple(text.split()), tuple(text.split()))


def binding(annotator: Annotator | None = None) -> Binding:
    nothing: Any = None  # no classifier is evaluated
    return Binding(nothing, WordTokenizer().make([TEXT, *restaurant_texts(50)]), None, annotator or Grammar())


def means(target: Target, texts: list[str], annotator: Annotator | None = None) -> dict[str, float]:
    found = target_metrics(target, texts, binding(annotator))
    return {name: sum(value or 0.0 for value in values) / len(values) for name, values in found.items()}


def test_the_real_text_is_all_that_its_own_targets_ask() -> None:
    for text in restaurant_texts(20, "test"):
        record = grammar.parse(text)
        assert record is not None
        field, value = next(iter(record.attributes.items()))
        tree, words = Tree(record.tree), text.split()
        gap = Gap(" ".join(words[:3]), " ".join(words[3:5]), " ".join(words[5:]))
        controls = (
            Attribute(field, value), PartsOfSpeech(" ".join(record.tags)), 2 * tree, Infill(gap.filled("{}")),
            Length(len(record.words)),
        )  # fmt: skip
        found = means(Target(controls, text, gap), [text])
        said = found.pop("attribute, value in the text (paper)")
        assert said == float(value.lower() in text.lower())
        assert found == pytest.approx(dict.fromkeys(found, 1.0)) and len(found) == 14


def test_four_tags_of_which_an_output_of_six_has_three() -> None:
    assert tag_matches(["A", "B", "C", "D"], ["A", "B", "C", "X", "D", "D"]) == 0.75
    target = Target((PartsOfSpeech("A B C D"),))
    found = means(target, ["A B C X D D", "A B C D E F", "A B"], Spelled())
    assert found["tags, matches / gold length (paper)"] == pytest.approx((0.75 + 1 + 0.5) / 3)
    assert found["tags, the whole text"] == found[ALL] == 0
    assert means(target, ["A B C D"], Spelled())["tags, the whole text"] == 1


def test_a_text_that_the_grammar_rejects_has_no_syntax() -> None:
    record = grammar.parse(TEXT)
    assert record is not None
    target = Target((PartsOfSpeech(" ".join(record.tags)), Tree(record.tree), Span(0, 2, "NP")))
    assert set(means(target, [UNSAID]).values()) == {0.0}
    assert set(means(target, [TEXT]).values()) == {1.0}


def test_a_tree_by_hand() -> None:
    """``(S (NP ..) (VP ..))`` against one whose VP ends elsewhere: two of three constituents on both sides."""

    @dataclass(frozen=True)
    class Parsed(Annotator):
        def annotate(self, text: str) -> Annotation:
            return Annotation(("a", "b", "c", "d"), None, "(S (NP (D a) (N b)) (VP (V c) (P d)))")

    target = Target((Tree("(S (NP (D a) (N b)) (VP (V c) (NP (P d) (N e))))"),))
    # Gold: S 0-4, NP 0-1, VP 2-4, NP 3-4; found: S 0-3, NP 0-1, VP 2-3; only one is the same.
    assert means(target, ["a b c d"], Parsed())["tree, F1 (paper)"] == pytest.approx(2 * 1 / (4 + 3))


def test_attributes_by_the_letter_and_by_the_grammar() -> None:
    target = Target((Attribute("price", "low"),))
    found = means(target, [TEXT, UNSAID + " low"])
    # "cheap" states a low price without the word; the second text has the word and is no text of the grammar.
    assert found["attribute, value in the text (paper)"] == 0.5
    assert found["attribute, by the grammar where it accepts"] == 1
    assert found["attribute, in an accepted text"] == 0.5
    assert found["attribute, price"] == found[ALL] == 1
    assert "attribute, in an accepted text" not in means(target, [TEXT], Plain())


def test_lengths_near_and_exact() -> None:
    found = means(Target((Length(4),)), ["a", "a b", "a b c d", "a b c d e f", "a b c d e f g"])
    assert (found["length, exact"], found["length, within two (paper)"]) == (0.2, 0.6)


def test_what_fills_a_gap() -> None:
    gap = Gap("The Eagle is", "a cheap pub", "near the river.")
    assert gap.filled(gap.hidden) == "The Eagle is a cheap pub near the river."
    assert filling(gap, "The Eagle is an inn near the river.") == ["an", "inn"]
    assert filling(gap, "The Eagle is near the river.") == []
    assert filling(gap, "The Eagle was an inn near the river.") is None
    target = Target((Infill(gap.filled("{}")),), None, gap)
    found = means(target, [gap.filled("a cheap pub"), gap.filled("a very old inn"), "The Eagle was a cheap pub near it."])
    assert found["infilling, context kept"] == pytest.approx(2 / 3)
    assert found["infilling, ROUGE-L (paper)"] == pytest.approx((1 + 2 * 1 / 7 + 0) / 3)
    assert found["infilling, BLEU-4 (paper)"] < 2 / 3


def test_bleu_and_rouge_by_hand() -> None:
    assert bleu_4(["a", "b"], ["a", "b"]) == pytest.approx(1)  # no n-gram is longer than the text
    assert bleu_4(["a", "b", "c", "d", "e"], ["a", "b", "c", "d", "e"]) == pytest.approx(1)
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples.
    assert bleu_4(["a", "b", "c", "d", "x"], ["a", "b", "c", "d", "e"]) == pytest.approx(
        (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    )
    assert rouge_l(["a", "b", "c", "d"], ["a", "c", "e"]) == pytest.approx(2 * 2 / 7)
    assert rouge_l([], []) == rouge_l(["a"], []) == 0


def test_the_standard_error_is_over_targets() -> None:
    scores = [[1.0, 0.0], [1.0, 1.0, 1.0], []]  # means 1/2, 1 and, of a target that the model cannot satisfy, 0
    found = over_targets(scores)
    assert (found.mean, found.error) == pytest.approx((0.5, 0.5 / math.sqrt(3)))
    # Ten copies of each text tell no more than one.
    assert over_targets([[1.0] * 10, [0.0] * 10]) == over_targets([[1.0], [0.0]])
    assert over_targets([[1.0, 0.0]]) == Estimate(0.5, None)


def test_perplexity_with_its_error_over_targets() -> None:
    judge = made()
    texts = [["the old man", "the dog"], ["a man"], [], ["the dog walks", "a man"]]
    found = perplexity_over_targets(judge, texts)
    assert found.mean == pytest.approx(perplexity(judge.score([text for each in texts for text in each])))
    nats = [sum(one.nats for one in judge.score(each)) for each in texts if each]
    tokens = [sum(one.tokens for one in judge.score(each)) for each in texts if each]
    mean = sum(nats) / sum(tokens)
    squares = sum((n - mean * t) ** 2 for n, t in zip(nats, tokens, strict=True))
    assert found.error == pytest.approx(math.exp(mean) * math.sqrt(3 / 2 * squares) / sum(tokens))
    # The same texts of the same targets twice: the mean stays, and so does what is known of it.
    assert perplexity_over_targets(judge, [each * 2 for each in texts]).error == pytest.approx(found.error)


def test_controls_of_one_kind_share_a_metric() -> None:
    target = Target((Length(2), Length(3) & Weighted(Length(2), 3.0)))
    found = means(target, ["a b"])
    assert found["length, exact"] == found[SCORE] == pytest.approx(2 / 3) and found[ALL] == 0
    assert metric_order(["all", "a, x", "b, y", "a, z", "b, y"]) == ["all", "a, x", "a, z", "b, y"]


def test_the_judge_goes_on_from_what_is_given() -> None:
    judge = made()
    texts = judge.complete("the old", 5, seed=3)
    assert all(text.startswith("the old") for text in texts) and len(set(texts)) > 1
    assert judge.complete("the old", 2, seed=3) == texts[:2]
    assert judge.complete("", 4, seed=3) == judge.sample(4, seed=3)
    assert all(len(text.split()) <= 3 for text in judge.complete("the old", 5, seed=3, max_tokens=1))
