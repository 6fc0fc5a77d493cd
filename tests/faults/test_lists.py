"""Functions that take a list of texts: one text, no list, and what is no text are refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffusionlm.config import UserError
from diffusionlm.controls import Binding, Length
from diffusionlm.controls.control import outcomes
from diffusionlm.data.batches import encode
from diffusionlm.evaluation import text_metrics
from diffusionlm.evaluation.scoring import score
from diffusionlm.evaluation.text_metrics import TrainingTexts
from diffusionlm.pipelines.auto import open_pipeline

GOLDEN = Path(__file__).parent.parent / "golden" / "format-1"
WRONG: list[Any] = ["one text", b"bytes", 5, None, {"a": 1}, iter(["a"]), [None], ["a", 1], [b"a"]]


@pytest.fixture(scope="module")
def takers() -> list[Callable[[Any], object]]:
    pipeline = open_pipeline(GOLDEN)
    known = TrainingTexts(["a pub"])
    binding = Binding(pipeline.model, pipeline.tokenizer)
    return [
        lambda texts: list(score(pipeline, texts)),
        lambda texts: encode(texts, pipeline.tokenizer),
        lambda texts: outcomes([Length(2)], texts, binding),
        lambda texts: text_metrics.distinct(texts, 1),
        lambda texts: text_metrics.diversity(texts, known),
        text_metrics.unigram_entropy,
        text_metrics.self_bleu,
        text_metrics.word_counts,
        TrainingTexts,
        known.copied,
    ]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: type(wrong).__name__)
def test_what_is_no_list_of_texts_is_refused(wrong: Any, takers: list[Callable[[Any], object]]) -> None:
    for take in takers:
        with pytest.raises(UserError, match="^texts: expected a list of texts") as caught:
            take(wrong)
        assert "\n" not in str(caught.value)


def test_figures_of_no_texts_are_refused() -> None:
    for take in (text_metrics.unigram_entropy, text_metrics.self_bleu, text_metrics.word_counts, TrainingTexts):
        with pytest.raises(UserError, match="expected at least one text, got none"):
            take([])
