"""How much a model of the embedded corpus knows of what its words owe each other: one word asked for, all others given.

    python benchmarks/agreement.py RUN [RUN ...] [--texts 50]

Each word of held-out texts is hidden as pure noise, and the belief about it is asked of the grammar: the chance, in percent,
of words with which no description could be written. The words that state good or bad are told apart by the kind of text they
are in, since they depend on other clauses: "because" needs two of one kind, "although" and "but" two of opposite kinds, and
in lists of what is praised or criticised they stand close together. Needs nothing but the model; some minutes a run.
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
JUDGING = re.compile(r"(staff|room|dish|level|price|range|limit|score|stars|praise|liked|advise)-(good|bad)")
LEAST = 0.02  # words that are less likely than this count as never written


def judging_words() -> set[str]:
    """Return the words of the grammar that state good or bad."""
    alternatives = (each.parts for name, row in GRAMMAR.items() if JUDGING.fullmatch(name) for each in row)
    return {part.form for parts in alternatives for part in parts if isinstance(part, Word)}


def kind_of(text: str) -> str:
    """Return the first of ``KINDS`` that a text is of."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, text.lower())), "other")


@torch.no_grad()
def beliefs(pipeline: Pipeline, ids: list[int], draws: int = 4) -> Tensor:
    """Return the odds (L - 2, V) of each word of a text with START and END, all others given."""
    model, places = pipeline.model, len(ids) - 2
    x0 = model.encode(torch.tensor([ids] * places))
    hidden = torch.eye(len(ids), dtype=torch.bool)[1:-1]
    mean = torch.zeros(places, len(model.word_vectors()))
    for _ in range(draws):
        xt, t = torch.where(hidden[..., None], torch.randn_like(x0), x0), hidden.float()
        first = model(xt, t).x0 if model.settings.self_conditioning else None
        mean += model(xt, t, None, first).logits[hidden].softmax(-1) / draws
    return mean


def wrong_shares(pipeline: Pipeline, texts: Sequence[str]) -> dict[str, float]:
    """Return the chance of an impossible word, over all places and over judging words in each kind of text."""
    wrong: defaultdict[str, float] = defaultdict(float)
    asked: Counter[str] = Counter()
    judging, tokenizer = judging_words(), pipeline.tokenizer
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        for place, odds in enumerate(beliefs(pipeline, ids), 1):
            likely = (odds > LEAST).nonzero().flatten().tolist()
            rows = [[*ids[1:place], word, *ids[place + 1 : -1]] for word in likely]
            written = zip(likely, decode_texts(tokenizer, rows), strict=True)
            bad = sum(float(odds[word]) for word, text_with_it in written if not accepts(text_with_it))
            keys = ["any word"]
            if decode_texts(tokenizer, [[ids[place]]])[0] in judging:
                keys.append(f"judging, {kind_of(text)}")
            for key in keys:
                wrong[key] += bad
                asked[key] += 1
    return {key: wrong[key] / count for key, count in sorted(asked.items())}


def main(words: Sequence[str] | None = None) -> int:
    """Measure each run and print a line a kind of word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run on the embedded corpus")
    parser.add_argument("--texts", type=int, default=50, help="held-out texts of each kind (%(default)s)")
    options = parser.parse_args(words)

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
            for key, share in wrong_shares(Pipeline.from_pretrained(run), chosen).items():
                print(f"{run}  {key:28} {share:6.1%}", flush=True)

    return exit_status(measure)


if __name__ == "__main__":
    sys.exit(main())
