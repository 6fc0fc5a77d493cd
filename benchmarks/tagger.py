"""Train a part-of-speech tagger on the Brown corpus: NLTK's averaged perceptron, with the twelve universal tags.

    NLTK_DATA=nltk_data python benchmarks/tagger.py --out runs/tagger

NLTK_DATA holds NLTK's corpora/brown and taggers/universal_tagset, as ``nltk.download`` leaves them. The tagger's files
are what ``annotator: {name: tagger, folder: runs/tagger}`` reads. One sentence in ten is held out; the accuracy goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from measure import exit_status
from nltk.corpus import brown
from nltk.tag import PerceptronTagger

from diffusionlm.files import write_text


def train_tagger(folder: Path, iterations: int = 3, sentences: int | None = None) -> float:
    """Train a tagger, write its files into ``folder``, and return the share of held-out words that it tags right."""
    tagged = [[(word, tag) for word, tag in sentence] for sentence in brown.tagged_sents(tagset="universal")[:sentences]]
    random.seed(0)
    random.shuffle(tagged)
    held_out = tagged[: len(tagged) // 10]
    tagger = PerceptronTagger(load=False)
    tagger.train(tagged[len(held_out) :], nr_iter=iterations)
    pairs = [
        (found, tag)
        for sentence in held_out
        for (_, found), (_, tag) in zip(tagger.tag([word for word, _ in sentence]), sentence, strict=True)
    ]
    for part, plain in zip(("weights", "tagdict", "classes"), tagger.encode_json_obj(), strict=True):
        write_text(folder / f"{part}.json", json.dumps(plain) + "\n")
    return sum(found == tag for found, tag in pairs) / len(pairs)


def main(words: Sequence[str] | None = None) -> int:
    """Train, and say how many held-out words are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="the tagger's folder")
    parser.add_argument("--sentences", type=int, help="of Brown, the first so many (all 57,340)")
    options = parser.parse_args(words)

    def ask() -> None:
        accuracy = train_tagger(Path(options.out), sentences=options.sentences)
        print(f"{options.out}: {accuracy:.1%} of held-out words are tagged right", file=sys.stderr)

    return exit_status(ask)


if __name__ == "__main__":
    sys.exit(main())
