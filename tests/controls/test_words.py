"""Length, Words, Prefix, Infill and Pattern: texts in and out, the check by words against the automaton, refusals."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tiny_runs import restaurant_texts
from transformers import PreTrainedTokenizerFast

from diffusionlm.config import UserError, build, to_plain
from diffusionlm.constraints.dfa import DFA
from diffusionlm.constraints.inference import forced_tokens, viterbi
from diffusionlm.constraints.spelling import BLANK, MARK, spelling
from diffusionlm.controls import Binding, Control, Infill, Length, Pattern, Prefix, Words, read_control
from diffusionlm.controls.phrase import ANYTHING, Chain, Word, phrase
from diffusionlm.data.tokenizers import BytePairs, TokenizerRecipe, WordTokenizer, decode_texts, split_words

TEXTS = [
    "The Eagle is a cheap pub near the river.",
    "The Eagle is a pub, cheap and low priced, near the old bridge.",
    "Isn't it a public house? It's near The Vaults' kid-friendly, 1,000.50-seat garden & can't be missed.",
    "Pubs: 'salt' and pepper - the B&B's best-known (cheap) pub costs £20-25.",
    "cheap",
]
RECIPES = [WordTokenizer(), BytePairs(vocab_size=120), BytePairs(vocab_size=1)]
CONTROLS: list[Control] = [
    Words("cheap", "pub"),
    Words("pub", "cheap", in_order=True),
    ~Words("cheap"),
    Words("near the", "a"),
    Words("Isn't"),
    Prefix("The Eagle is"),
    Prefix("Pubs"),
    Infill("The Eagle is a {} pub near {2-3} ."),
    Infill("{} cheap {1-4}"),
    Pattern("the eagle .* (cheap|low priced) .{0,4} river \\."),
    Pattern("[cheap pubs]"),
    Pattern(".* 1,000\\.50-seat .* | .{5,11}"),
    ~Pattern("(. .)*"),
    Words("it") & Words("'s") | Prefix("cheap"),
]


@dataclass(frozen=True, eq=False)
class Named:
    """What these controls need of a binding."""

    tokenizer: PreTrainedTokenizerFast
    model: Any = field(default_factory=lambda: SimpleNamespace(config=SimpleNamespace(max_tokens=128)))

    def automaton(self, key: object, make: Callable[[], DFA]) -> DFA:
        """Make an automaton, which a binding would keep."""
        return make()


@cache
def bound(recipe: TokenizerRecipe, texts: tuple[str, ...] = tuple(TEXTS)) -> Binding:
    """Return a binding to the tokenizer that ``recipe`` makes of ``texts``."""
    return cast(Binding, Named(tokenizer=recipe.make(texts)))


@cache
def language(control: Control, binding: Binding) -> DFA:
    found = control.compile(binding).automaton
    assert found is not None
    return found


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def drawn_texts(tokenizer: PreTrainedTokenizerFast, count: int, seed: int) -> list[list[int]]:
    """Return token ids of texts that are cut out of and put together from the training texts, some words at random."""
    source = random.Random(seed)
    plain = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    rows = []
    for _ in range(count):
        row = [i for text in source.sample(TEXTS, 2) for i in ids(tokenizer, text)]
        start = source.choice([0, 0, source.randrange(len(row))])
        row = row[start : start + source.randint(1, 25)]
        rows.append([source.choice(plain) if source.random() < 0.1 else i for i in row])
    return rows


@pytest.mark.parametrize(
    ("control", "passing"),
    [
        (Words("cheap", "pub"), [0, 1, 3]),
        (Words("pub", "cheap", in_order=True), [1]),
        (Words("CHEAP"), [0, 1, 3, 4]),
        (~Words("cheap"), [2]),
        (Words("pub near"), [0]),
        (Words("public"), [2]),
        (Prefix("The Eagle is a"), [0, 1]),
        (Infill("The Eagle is a {} pub near {2} ."), [0]),
        (Infill("The Eagle is a {8-12} bridge."), [1]),
        (Pattern("cheap"), [4]),
        (Pattern(".* near the [river bridge old] .? \\."), [0, 1]),
        (Pattern("(pubs|isn't) .*"), [2, 3]),
        (Pattern("the .{9} | cheap{1,2}"), [0, 4]),
        (Pattern("cheap+ pub* .?"), [4]),
    ],
)
@pytest.mark.parametrize("recipe", RECIPES)
def test_texts_in_and_out(control: Control, passing: list[int], recipe: TokenizerRecipe) -> None:
    binding = bound(recipe)
    asked = language(control, binding)
    assert [i for i, score in enumerate(control.score(TEXTS, binding)) if score == 1] == passing
    assert [i for i, text in enumerate(TEXTS) if asked.contains(ids(binding.tokenizer, text))] == passing


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_check_by_words_is_the_automaton(recipe: TokenizerRecipe) -> None:
    """Also for tokens that no tokenizer would put together; where tokens are words, the automaton may only be stricter."""
    binding = bound(recipe)
    tokenizer, speller = binding.tokenizer, spelling(binding.tokenizer)
    rows = drawn_texts(tokenizer, 100, seed=1)
    texts = decode_texts(tokenizer, rows)
    whole = speller.over_tokens(ANYTHING.automaton(speller, ""))
    for control in CONTROLS:
        asked, scores = language(control, binding), control.score(texts, binding)
        for row, text, score in zip(rows, texts, scores, strict=True):
            if whole.contains(row):
                assert asked.contains(row) == (score == 1), (str(control), text)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_viterbi_path_passes(control: Control, recipe: TokenizerRecipe) -> None:
    """With random logits, every decoded text still satisfies the control."""
    binding = bound(recipe)
    asked = language(control, binding)
    if recipe == RECIPES[0]:  # A text that is not cut as the tokenizer would is only kept out where nothing is denied.
        asked &= language(Length(1, 40), binding)
    possible = asked.lengths(40)
    lengths = torch.tensor([possible[0], possible[len(possible) // 2], possible[-1]])
    logits = torch.randn(3, 40, len(binding.tokenizer))
    logits[..., binding.tokenizer.all_special_ids] = -torch.inf
    rows = [row[:n] for row, n in zip(viterbi(asked, logits, lengths).tolist(), lengths.tolist(), strict=True)]
    assert control.score(decode_texts(binding.tokenizer, rows), binding) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("recipe", RECIPES)
def test_lengths_are_tokens(recipe: TokenizerRecipe) -> None:
    binding = bound(recipe)
    counts = [len(ids(binding.tokenizer, text)) for text in TEXTS]
    assert Length(counts[0]).score(TEXTS, binding) == [float(count == counts[0]) for count in counts]
    assert Length(1, counts[1]).score(TEXTS, binding) == [float(count <= counts[1]) for count in counts]
    assert language(Length(3, 5), binding).lengths(9) == [3, 4, 5]
    assert language(Length(4), binding).lengths(9) == [4]
    for text, count in zip(TEXTS, counts, strict=True):
        assert language(Length(count), binding).contains(ids(binding.tokenizer, text))
        assert not language(Length(count + 1), binding).contains(ids(binding.tokenizer, text))


def test_words_are_marked_where_the_tokenizer_cuts() -> None:
    """Against the regular expression itself, on strings made to be hard; each has one marking (but for ``'s-n't``, no word)."""
    tokenizer = BytePairs(vocab_size=1).make(["nNtTsSrRe dD'’-&.,12aé (£ llm v,"])
    speller, source = spelling(tokenizer), random.Random(0)
    number = {character: i for i, character in enumerate(speller.characters)}
    hard = ["n't", "'s", "’ll", *"nntts''’--&..,,12aé(£   "]
    for _ in range(1000):
        text = " ".join("".join(source.choices(hard, k=source.randint(1, 7))).split())
        pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)] if text else []
        marked = "".join(BLANK + MARK + piece[1:] if piece[0] == "▁" else MARK + piece for piece in pieces)
        assert speller.proper.contains([number[c] for c in marked]) or re.search("['’](s|ll|t)[-&]n['’]t", text), marked
        for i in range(len(marked) + 1):
            other = marked[:i] + marked[i + 1 :] if marked[i : i + 1] == MARK else marked[:i] + MARK + marked[i:]
            assert not speller.proper.contains([number[c] for c in other]), other


def test_words_that_grow_together_are_not_the_words() -> None:
    binding = bound(BytePairs(vocab_size=60), ("pub public che ap cheap pu b lic",))
    tokenizer = binding.tokenizer
    vocabulary = tokenizer.get_vocab()
    asked, avoided = language(Words("pub"), binding), language(~Words("cheap"), binding)
    assert asked.contains(ids(tokenizer, "pub"))
    assert not asked.contains(ids(tokenizer, "public"))
    pieces = [vocabulary[piece] for piece in "▁pub"]
    assert asked.contains(pieces)
    assert not asked.contains([*pieces, vocabulary["l"]])
    assert not avoided.contains([vocabulary[piece] for piece in "▁cheap"])


def test_scores_are_shares() -> None:
    binding = bound(WordTokenizer())
    assert Words("cheap", "river", "garden", "pub").score(TEXTS, binding) == [0.75, 0.5, 0.25, 0.5, 0.25]


def test_given_words_leave_no_choice() -> None:
    binding = bound(WordTokenizer(), tuple(restaurant_texts(200)))
    template = language(Infill("The Golden Lion is {3} ."), binding)
    held = forced_tokens(template, torch.tensor([8]), 9)[0].tolist()
    given = ids(binding.tokenizer, "The Golden Lion is a b c.")
    assert held == [*given[:4], -1, -1, -1, given[-1], -1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Words(), "expected words such as"),
        (lambda: Words("cheap", " "), 'got "cheap", " "'),
        (lambda: Prefix(""), "words that texts begin with"),
        (lambda: Infill("a { pub"), r"got '\{ pub' at 2"),
        (lambda: Infill("a {{3} pub"), r"got '\} pub' at 5"),
        (lambda: Infill("a {3-2} pub"), r"lower number first, got '\{3-2\}'"),
        (lambda: Infill("a {0} pub"), "one word or more"),
        (lambda: Length(0), "got 0 to 0"),
        (lambda: Length(5, 3), "got 5 to 3"),
        (lambda: Length(cast(Any, "five")), "got 'five'"),
        (lambda: Pattern(" "), "expected words and signs"),
        (lambda: Pattern("a (b|c"), r"expected a closing \), got the end at character 6"),
        (lambda: Pattern("a ) b"), r"expected the end, or a word, got '\) b' at character 2"),
        (lambda: Pattern("* a"), r"expected a word, a point, \( or \[, got '\* a' at character 0"),
        (lambda: Pattern("a{x}"), r"number of times such as \{3\}, \{2,5\} or \{2,\}, got '\{x\}' at character 1"),
        (lambda: Pattern("a{3,2}"), "number of times"),
        (lambda: Pattern("[a (]"), r"expected a word or a closing \], got '\(\]' at character 3"),
        (lambda: Pattern("[]"), "words between"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_word_that_the_vocabulary_has_not(recipe: TokenizerRecipe) -> None:
    if recipe == RECIPES[0]:
        for control in (Words("chaep"), Pattern(".* chaep"), Infill("{} chaep {}"), Prefix("chaep")):
            with pytest.raises(UserError, match="vocabulary has no word 'chaep'; did you mean 'cheap'"):
                control.compile(bound(recipe))
        with pytest.raises(UserError, match="has no word 'eagle'; did you mean 'Eagle'"):
            Prefix("The eagle").compile(bound(recipe))
    with pytest.raises(UserError, match="has no word '日本'"):
        Words("日本").compile(bound(recipe))


@pytest.mark.parametrize(
    "control",
    [
        Words("cheap", "the pub", in_order=True),
        Words("a"),
        Prefix("The"),
        Infill("{} {3}"),
        Pattern(".* a"),
        Length(3),
        Length(3, 4),
    ],
)
def test_round_trips(control: Control) -> None:
    assert read_control(str(control)) == control
    assert build(Control, to_plain(control)) == control


def test_short_forms() -> None:
    assert read_control("length=20") == Length(20)
    assert read_control("length=20-25") == Length(20, 25)
    assert read_control("words=cheap") == Words("cheap")


def test_phrases_by_words() -> None:
    assert split_words("It's a pub.") == ["It", "'s", "a", "pub", "."]
    assert phrase("It's").matches(["it", "'S"])
    assert not phrase("It's", cased=True).matches(["it", "'s"])
    assert Chain((ANYTHING, Word("b"), ANYTHING)).ends(["a", "b", "b", "c"], {0}) == {2, 3, 4}


def test_a_doubled_brace_is_the_brace_itself() -> None:
    (phrase,) = Infill("a {{b}} {2} {{ c").phrases()
    assert phrase.matches(["a", "{", "b", "}", "x", "y", "{", "c"])
    assert not phrase.matches(["a", "{", "b", "}", "x", "{", "c"])
