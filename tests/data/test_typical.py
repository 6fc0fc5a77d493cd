import random

import datasets  # type: ignore[import-untyped]
import pytest
from sacrebleu import sentence_bleu

from diffusionlm.config import UserError
from diffusionlm.data import typical
from diffusionlm.data.batches import DataConfig
from diffusionlm.data.typical import agreements, typical_rows
from diffusionlm.models.diffusion import ModelConfig
from diffusionlm.models.source import Source
from diffusionlm.training.texts import keep_typical

TEXTS = ["a b c d e", "v w x y z", "a b c d f", "a b c d e", "a b c d g", "k l m n o", "k l m n p"]
ROWS = datasets.Dataset.from_dict({"text": TEXTS, "source": [*["one"] * 5, *["two"] * 2]})


def test_agreement_is_the_sum_of_the_bleu_against_each_other_text() -> None:
    assert agreements(["a b c d e"] * 3) == pytest.approx([200] * 3)
    assert agreements(["a b c d e", "v w x y z", "a b c d e"], [0]) == pytest.approx([100], abs=12)  # smoothed
    assert agreements(["a b c d e", "a b c d e"]) == [0, 0]


def test_agreement_equals_sacrebleu_pair_by_pair_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, words = random.Random(0), ["a", "b", "c", ".", ",", "it's", "x-y", "£20"]
    texts = ["", "a", "a a a a", "a a a a", "a b a b a b ", *(" ".join(draw.choices(words, k=n)) for n in range(1, 16))]
    others = [[other for i, other in enumerate(texts) if i != n] for n in range(len(texts))]
    pairwise = [sum(sentence_bleu(text, [o]).score for o in each) for text, each in zip(texts, others, strict=True)]
    assert agreements(texts) == pairwise
    assert agreements(texts, [7, 3]) == [pairwise[7], pairwise[3]]
    monkeypatch.setattr(typical, "AT_ONCE", 200)
    assert agreements(texts) == pairwise


def test_the_distinct_texts_that_agree_most_with_the_others_of_their_source_are_kept_in_order() -> None:
    sources = ROWS["source"][:]
    assert typical_rows(ROWS, sources, 3)["text"][:] == ["a b c d e", "a b c d f", "a b c d g", "k l m n o", "k l m n p"]
    assert typical_rows(ROWS, sources, 1)["text"][:] == ["a b c d e", "k l m n o"]
    assert typical_rows(ROWS, sources, 4)["text"][:] == [text for i, text in enumerate(TEXTS) if i != 3]  # once each


def test_a_run_keeps_them_of_its_training_texts_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    splits = {"train": ROWS, "validation": ROWS}
    model = ModelConfig(condition=Source())
    assert keep_typical(splits, model, DataConfig()) is splits
    kept = keep_typical(splits, model, DataConfig(typical=1))
    assert len(kept["train"]) == 2 and kept["validation"] is ROWS
    assert "train: 2 of 7 texts are kept, at most 1 of each source\n" in capsys.readouterr().err


def test_what_has_no_effect_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"data\.typical: this model has no source, of which texts could be typical; leave it out"
    ):
        keep_typical({"train": ROWS}, ModelConfig(), DataConfig(typical=1))
    with pytest.raises(UserError, match=r"data\.typical: no source has more than 5 texts, so this setting has no effect"):
        typical_rows(ROWS.select([0, 1, 2]), ["one"] * 3, 5)
    with pytest.raises(UserError, match="typical: expected at least 1, got 0"):
        DataConfig(typical=0)
