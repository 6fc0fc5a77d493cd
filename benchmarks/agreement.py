"""Measure how well a model of the restaurants corpus predicts one hidden word from all other words of the text.

    python benchmarks/agreement.py RUN [RUN ...] [--texts 50]

Each word of held-out texts in turn is replaced by pure noise. The figure is the predicted probability, in percent, of
impossible words: those with which the grammar rejects the text. It is averaged over all words, and over the evaluative words
(those that state good or bad) of each kind of text, because these depend on other clauses: "because" requires two clauses of
the same polarity, "although" and "but" two of opposite polarity, and in lists of praise or criticism the dependent words are
close together. Needs only the model, and takes some minutes per run.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from measure import exit_status
from torch import Tensor

from diffusionlm.data.tokenizers import decode_texts
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.restaurants.corpus import Restaurants
from diffusionlm.restaurants.grammar import GRAMMAR, Word, accepts

KINDS = {
    "lists of praise": r"\b(criticise|dislike|hate|praise|admire|love)\b.* the\b",
    "because": r"\b(because|since)\b",
    "although": r"\b(although|though|while)\b",
    "but": r"\bbut\b",
    "and": r", and\b",
}
EVALUATIVE = re.compile(r"(staff|room|dish|level|price|range|limit|score|stars|praise|liked|advise)-(good|bad)")
MINIMUM = 0.02  # less probable words are not checked with the grammar


def evaluative_words() -> set[str]:
    """Return the words of the grammar that state good or bad."""
    alternatives = (each.parts for name, row in GRAMMAR.items() if EVALUATIVE.fullmatch(name) for each in row)
    return {part.form for parts in alternatives for part in parts if isinstance(part, Word)}


def kind_of(text: str) -> str:
    """Return the first of ``KINDS`` whose pattern a text contains, else "other"."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, text.lower())), "other")


@torch.no_grad()
def token_posteriors(pipeline: Pipeline, ids: list[int], draws: int = 4) -> Tensor:
    """Return the posterior (L - 2, V) of each token between BOS and EOS given all others, averaged over draws of the noise."""
    model, count = pipeline.model, len(ids) - 2
    x0 = model.encode(torch.tensor([ids] * count))
    hidden = torch.eye(len(ids), dtype=torch.bool)[1:-1]
    mean = torch.zeros(count, len(model.word_vectors()))
    for _ in range(draws):
        xt, t = torch.where(hidden[..., None], torch.randn_like(x0), x0), hidden.float()
        x0_prev = model(xt, t).x0 if model.settings.self_conditioning else None
        mean += model(xt, t, None, x0_prev).logits[hidden].softmax(-1) / draws
    return mean


def impossible_shares(pipeline: Pipeline, texts: Sequence[str]) -> dict[str, float]:
    """Return the mean probability of impossible words, over all positions and over evaluative words in each kind of text."""
    totals: defaultdict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    evaluative, tokenizer = evaluative_words(), pipeline.tokenizer
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        for position, posterior in enumerate(token_posteriors(pipeline, ids), 1):
            probable = (posterior > MINIMUM).nonzero().flatten().tolist()
            rows = [[*ids[1:position], token, *ids[position + 1 : -1]] for token in probable]
            candidates = zip(probable, decode_texts(tokenizer, rows), strict=True)
            impossible = sum(float(posterior[token]) for token, candidate in candidates if not accepts(candidate))
            keys = ["any word"]
            if decode_texts(tokenizer, [[ids[position]]])[0] in evaluative:
                keys.append(f"evaluative, {kind_of(text)}")
            for key in keys:
                totals[key] += impossible
                counts[key] += 1
    return {key: totals[key] / count for key, count in sorted(counts.items())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each run and print one line per kind of word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run on the restaurants corpus")
    parser.add_argument("--texts", type=int, default=50, help="held-out texts of each kind (%(default)s)")
    options = parser.parse_args(arguments)

    def measure() -> None:
        torch.set_num_threads(1)
        splits = Restaurants().load()
        chosen: list[str] = []
        seen: Counter[str] = Counter()
        for text in [*splits["validation"]["text"], *splits["test"]["text"]]:
            seen[kind_of(text)] += 1
            chosen += [text] if seen[kind_of(text)] <= options.texts else []
        for run in options.runs:
            torch.manual_seed(0)
            for key, share in impossible_shares(Pipeline.from_pretrained(run), chosen).items():
                print(f"{run}  {key:28} {share:6.1%}", flush=True)

    return exit_status(measure)


if __name__ == "__main__":
    sys.exit(main())
