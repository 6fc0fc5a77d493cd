"""Samples that are copies of training texts are reported, with what helps; samples that are not are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_warnings import UNSPACED
from tiny_runs import restaurant_texts, tiny_config

from diffusionlm.data.batches import encode
from diffusionlm.data.tokenizers import BytePairs, TokenizerRecipe, WordTokenizer, decode_texts
from diffusionlm.evaluation.text_metrics import TrainingTexts
from diffusionlm.training.run import train
from diffusionlm.training.texts import Copies

SPACED = restaurant_texts(100)
BPE = "data.tokenizer: bpe splits lines without spaces, and words that occur once"


def warning(texts: list[str], samples: list[str], recipe: TokenizerRecipe | None = None, max_length: int = 64) -> str:
    recipe = recipe or WordTokenizer()
    tokenizer = recipe.make(texts, max_length)
    return Copies(encode(texts, tokenizer, max_length).ids, tokenizer, recipe, "model.backbone.dropout").warning(samples)


def test_copies_of_unspaced_lines_name_the_tokenizer_that_splits_them() -> None:
    assert warning(UNSPACED, UNSPACED[:10]) == f"100% of 10 samples are training texts, word for word; {BPE}"
    assert warning(UNSPACED * 3, UNSPACED[:10]).endswith(BPE)  # each line several times in the corpus


def test_copies_of_other_texts_name_what_helps_against_a_model_that_remembers() -> None:
    found = warning(SPACED, [*SPACED[:4], *restaurant_texts(106)[100:]])
    assert found.startswith("40% of 10 samples are training texts, word for word; train on more texts, for fewer steps, ")
    assert found.endswith("or with dropout (model.backbone.dropout)")
    assert "bpe" not in warning(UNSPACED, UNSPACED[:10], BytePairs(vocab_size=100))


def test_a_copy_of_a_text_that_was_cut_is_a_copy() -> None:
    cut = [" ".join(text.split()[:8]) for text in SPACED]
    assert warning(cut, cut[:10]) and warning([f"{text} one two three" for text in cut], cut[:10]) == ""
    tokenizer = WordTokenizer().make(SPACED)
    rows = encode(SPACED, tokenizer, 10).ids
    copies = Copies(rows, tokenizer, WordTokenizer(), "")
    assert copies.warning(decode_texts(tokenizer, rows[:10])).startswith("100% of 10 samples")


def test_new_texts_and_few_copies_get_no_warning() -> None:
    assert warning(SPACED, restaurant_texts(110)[100:]) == ""
    assert warning(SPACED, [*SPACED[:3], *restaurant_texts(107)[100:]]) == ""


def test_texts_that_the_corpus_itself_repeats_may_be_repeated() -> None:
    greetings = ["good morning to you", "good evening to you", "thank you very much"]
    corpus = greetings * 20 + SPACED[:60]  # half of the corpus repeats itself, and so may half of the samples
    assert warning(corpus, [*greetings, *greetings, *restaurant_texts(104)[100:]]) == ""
    assert warning(corpus, [*greetings, *greetings, *SPACED[:3], SPACED[70]]).startswith("90% of 10 samples")


def test_training_counts_copies_as_evaluation_does() -> None:
    samples = [f"  {SPACED[0]}  ", SPACED[1].replace(" ", "  "), SPACED[2].upper(), "something else"]
    tokenizer = WordTokenizer().make(SPACED)
    copies = Copies(encode(SPACED, tokenizer).ids, tokenizer, WordTokenizer(), "")
    assert copies.known.copied(samples) == TrainingTexts(SPACED).copied(samples) == 0.5


def test_a_run_warns_once_and_at_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(UNSPACED), encoding="utf-8")
    assert train(tiny_config(tmp_path, training={"sample_every": 2}), tmp_path / "run", quiet=True)
    samples = (tmp_path / "run" / "samples" / "step-8.txt").read_text(encoding="utf-8").splitlines()
    assert {*samples} <= {*UNSPACED}
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("after ")]
    assert [line.split()[1] for line in lines] == ["2", "8"] and all(line.endswith(BPE) for line in lines)
