"""The condition ``tags``: from the words of the corpus to the tokens, of whole, cut and split texts, and given in sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest
import torch

from diffusionlm.config import UserError, build, to_plain
from diffusionlm.data.annotators import Annotation, Annotator
from diffusionlm.data.batches import encode
from diffusionlm.data.tokenizers import BytePairs, WordTokenizer
from diffusionlm.models.attributes import Label, Several
from diffusionlm.models.backbones import Transformer
from diffusionlm.models.conditions import Condition, at_positions
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.models.leave_one_out import LeaveOneOut
from diffusionlm.models.tags import Tags

ROWS = [
    {"text": "a good pub near the old river", "tags": ["D", "A", "N", "P", "D", "A", "N"], "kind": "x"},
    {"text": "pubs close", "tags": ["N", "V"], "kind": "y"},
    {"text": "open", "tags": None, "kind": "y"},
]
CORPUS = datasets.Dataset.from_list(ROWS)
WORDS = WordTokenizer().make(CORPUS["text"][:])
FITTED = Tags(labels=("A", "D", "N", "P", "V"))


@dataclass(frozen=True)
class FirstLetters(Annotator):
    """Tags each word with its first letter; rejects "open"."""

    def annotate(self, text: str) -> Annotation | None:
        words = tuple(text.split())
        return None if text == "open" else Annotation(words, tuple(word[0] for word in words))


def rows_of(condition: Condition, tokenizer: Any = WORDS, rows: datasets.Dataset = CORPUS, **cut: Any) -> list[Any]:
    """Return the encoded values of the training rows."""
    spec = ModelConfig(dimension=8, backbone=Transformer(layers=1, width=16, heads=2), condition=condition)
    splits = {"train": rows}
    spec = spec.fitted(splits)
    texts = encode(rows["text"][:], tokenizer, **cut)
    return [row.condition for row in spec.rows({"train": texts}, splits, tokenizer)["train"]]  # type: ignore[attr-defined]


def test_the_tags_are_those_of_the_training_texts() -> None:
    assert Tags().fitted(CORPUS) == FITTED and Tags().describes(FITTED)
    assert build(Condition, to_plain(FITTED)) == FITTED
    assert Tags(labels=("N", "V")).fitted(CORPUS).labels == ("N", "V")
    with pytest.raises(UserError, match="no training text has the tag 'VB'; did you mean 'V'"):
        Tags(labels=("N", "VB")).fitted(CORPUS)


def test_each_token_has_the_tag_of_its_word_and_bos_and_eos_have_none() -> None:
    values = rows_of(Tags())
    assert values == [(2, 1, 3, 4, 2, 1, 3), (3, 5), None]
    tags = FITTED.collate(values)["tags"]
    assert tags.tolist() == [[0, 2, 1, 3, 4, 2, 1, 3, 0], [0, 3, 5, 0, 0, 0, 0, 0, 0], [0] * 9]
    features = FITTED.build(None)(tags).features  # type: ignore[arg-type]
    assert features.shape == (3, 9, 5) and features[0, 1].tolist() == [0, 1, 0, 0, 0] and features[2].sum() == 0
    assert FITTED.length(values[0]) == 7 and FITTED.length(None) is None


def test_pieces_of_words_have_the_tag_of_the_word() -> None:
    pieces = BytePairs().make(["a pub s close near river old good the"])
    assert len(pieces("pubs close", add_special_tokens=False)["input_ids"]) > 2
    values = rows_of(Tags(), pieces)
    found = pieces("pubs close", add_special_tokens=False).encodings[0].word_ids
    assert values[1] == tuple((3, 5)[word] for word in found)


def test_cut_and_split_texts_keep_the_tags_of_their_own_words() -> None:
    rows = CORPUS.select(range(2))
    assert rows_of(Tags(), rows=rows, max_length=5, too_long="truncate") == [(2, 1, 3), (3, 5)]
    assert rows_of(Tags(), rows=rows, max_length=5, too_long="split") == [(2, 1, 3), (4, 2, 1), (3,), (3, 5)]
    several = Several((Tags(), Label("kind")))
    assert rows_of(several, rows=rows, max_length=6, too_long="split")[1] == {"tags": (2, 1, 3), "kind": "x"}


def test_an_annotator_tags_the_texts_in_place_of_the_column() -> None:
    rows = CORPUS.select(range(2))
    assert rows_of(Tags(annotator=FirstLetters()), rows=rows)[1] == (6, 2)  # of a c g n o p r t
    with pytest.raises(UserError, match="gives no tags for 'open'"):
        rows_of(Tags(annotator=FirstLetters()))


def test_tags_that_are_not_in_the_training_texts_are_none_in_others() -> None:
    splits = {"train": CORPUS, "validation": datasets.Dataset.from_list([{"text": "pubs close", "tags": ["N", "X"]}])}
    assert FITTED.encoded(FITTED.values(splits["validation"]), WORDS) == [(3, 0)]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (["N", "VV"], "condition: tags: there is no tag 'VV'; did you mean 'V'?"),
        ("N X", "condition: tags: there is no tag 'X'; choose from A, D, N, P, V"),
        ([], "condition: tags: expected a list of tags, one for each token, got []"),
        (7, "condition: tags: expected a list of tags, one for each token, got 7"),
    ],
)
def test_impossible_tags_are_refused(value: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        FITTED.encoded([value], WORDS)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        (["N"], "expected a tag in 'tags' for each of the 2 words of 'pubs close', got 1"),
        ("N V", "expected a list of tags in 'tags', got 'N V' in text 1"),
    ],
)
def test_a_corpus_with_another_number_of_tags_is_refused(tags: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        FITTED.encoded(FITTED.values(datasets.Dataset.from_list([{"text": "pubs close", "tags": tags}])), WORDS)


def test_tags_of_a_new_model_need_a_network_that_reads_each_position() -> None:
    left_out = LeaveOneOut(layers=1, query_layers=1, width=16, heads=2)
    with pytest.raises(UserError, match="'tags' are of each position, which 'leave-one-out' predicts without its own inputs"):
        ModelConfig(dimension=8, backbone=left_out, condition=FITTED).make(WORDS, [[2, 4, 3]], 8)
    model = ModelConfig(dimension=8, backbone=Transformer(layers=1, width=16, heads=2), condition=FITTED).make(
        WORDS, [[2, 4, 3]], 9
    )
    found = []
    for tags in ("D N", "D V"):
        given = model.condition_on(FITTED.collate(FITTED.encoded([tags], WORDS)))
        torch.manual_seed(0)
        found.append(model.train(False)(torch.randn(1, 4, 8), torch.tensor([0.5]), condition=given).logits)
    assert not torch.equal(found[0][0, 2], found[1][0, 2])


def test_features_of_fewer_positions_are_followed_by_none() -> None:
    features = torch.randn(2, 3, 4)
    padded = at_positions(features, 5)
    assert torch.equal(padded[:, :3], features) and padded[:, 3:].abs().sum() == 0
    assert torch.equal(at_positions(features[:, 0], 2)[:, 1], features[:, 0])
    with pytest.raises(UserError, match="expected features of up to 2 positions, got 3"):
        at_positions(features, 2)
