"""Seam: a classifier of another library. Scikit-learn's logistic regression steers by particles (Singhal et al. 2025).

A bag-of-words classifier reads finished texts and has no gradient with respect to noisy vectors. ``Reward`` needs none: of
each sample, ``count`` copies are denoised together; every few steps the text predicted so far is scored, r = p(cheap | text),
and copies are resampled with the weights

    w = exp( strength (r_s - r_t) )                   t: the scoring before, s: this one

Any callable ``texts -> scores`` will do, by itself or by its import path. The classifier itself is ``Classifier("low",
classifier())``: its reward is log p(low | text).

    python examples/sklearn_classifier.py [RUN]                         (needs scikit-learn)
    PYTHONPATH=examples diffusionlm generate restaurants --control 'Reward("sklearn_classifier:cheap")'
    PYTHONPATH=examples diffusionlm generate restaurants --control 'Classifier("low", "sklearn_classifier:classifier")'
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import tiny
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from diffusionlm.controls import Reward


@cache
def classifier() -> Any:
    """Fit p(price | bag of words and pairs of words) to 2,000 texts of the corpus that state a price."""
    rows = tiny.config().data.corpus.load()["train"].select(range(8000))
    pairs = [(row["text"], row["attributes"].get("price")) for row in rows]
    texts, labels = zip(*[pair for pair in pairs if pair[1] in ("low", "high")][:2000], strict=True)
    return make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=500)).fit(texts, labels)


def cheap(texts: Sequence[str]) -> list[float]:
    """Return the probability of a low price for each text."""
    column = list(classifier().classes_).index("low")
    return [float(p) for p in classifier().predict_proba(texts)[:, column]]


def main(folder: str | None = None, count: str = "12") -> None:
    """Print the classifier's mean probability without and with the reward, and samples of both."""
    pipe = tiny.model(folder)
    free = [row.text for row in pipe(int(count))]
    particles = {"count": 8, "every": 2, "strength": 10}
    steered = [row.text for row in pipe(int(count), controls=[Reward(cheap)], particles=particles)]
    for name, texts in (("without", free), ("with the reward", steered)):
        print(f"{name}: mean p(cheap) {sum(cheap(texts)) / len(texts):.2f}")
        for text in texts[:4]:
            print(f"  {text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
