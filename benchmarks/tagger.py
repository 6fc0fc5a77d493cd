"""Train a part-of-speech tagger on the Brown corpus: NLTK's averaged perceptron with the twelve universal tags.

    NLTK_DATA=nltk_data python benchmarks/tagger.py --out runs/tagger

NLTK_DATA contains NLTK's corpora/brown and taggers/universal_tagset, as ``nltk.download`` saves them. The setting
``annotator: {name: tagger, folder: runs/tagger}`` loads the tagger. One sentence in ten is held out, and the accuracy on
these sentences goes to stderr.
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
    """Train a tagger, save it in ``folder``, and return its accuracy on the words of the held-out sentences."""
    tagged = [[(word, tag) for word, tag in sentence] for sentence in brown.tagged_sents(tagset="universal")[:sentences]]
    random.seed(0)
    random.shuffle(tagged)
    held_out = tagged[: len(tagged) // 10]
    tagger = PerceptronTagger(load=False)
    tagger.train(tagged[len(held_out) :], nr_iter=iterations)
    pairs = [
        (predicted, tag)
        for sentence in held_out
        for (_, predicted), (_, tag) in zip(tagger.tag([word for word, _ in sentence]), sentence, strict=True)
    ]
    for part, plain in zip(("weights", "tagdict", "classes"), tagger.encode_json_obj(), strict=True):
        write_text(folder / f"{part}.json", json.dumps(plain) + "\n")
    return sum(predicted == tag for predicted, tag in pairs) / len(pairs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the tagger and print its accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="output folder of the tagger")
    parser.add_argument("--sentences", type=int, help="number of sentences of Brown, from the start (default: all 57,340)")
    options = parser.parse_args(arguments)

    def run() -> None:
        accuracy = train_tagger(Path(options.out), sentences=options.sentences)
        print(f"{options.out}: accuracy {accuracy:.1%} on held-out words", file=sys.stderr)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
