"""Compare the variety of infilled samples with that of the reference texts: the share of distinct fillings of a gap.

    python benchmarks/fillings.py --folder E2E --texts results/control-e2e/texts/RUN-e2e-infilling-HASH.jsonl

For each gap, the script counts all fillings of one to six words that training texts have between the same context words: one
or two on each side. From these it draws as many fillings as there are samples, a thousand times, and averages the share of
distinct ones. Gaps with fewer than 20 such fillings are left out. Prints one line for each number of context words.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from measure import exit_status

from diffusionlm.config import UserError
from diffusionlm.controls import Infill, read_controls
from diffusionlm.data.corpora import E2E

LONGEST, MINIMUM, DRAWS = 6, 20, 1000


def fillings(texts: Sequence[Sequence[str]], left: Sequence[str], right: Sequence[str]) -> Counter[str]:
    """Count the fillings between the words ``left`` and ``right`` in ``texts``.

    An empty ``left`` is the start of the text, and an empty ``right`` its end.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        for first in range(len(left), len(text)):
            if list(text[first - len(left) : first]) != list(left) or (not left and first):
                continue
            for end in range(first + 1, min(first + LONGEST, len(text)) + 1):
                if list(text[end : end + len(right)]) == list(right) and (right or end == len(text)):
                    counts[" ".join(text[first:end])] += 1
    return counts


def distinct_share(counts: Counter[str], size: int) -> float:
    """Return the mean share of distinct fillings among ``size`` fillings that are drawn in proportion to ``counts``."""
    generator, population = random.Random(0), list(counts.elements())
    return sum(len(set(generator.choices(population, k=size))) / size for _ in range(DRAWS)) / DRAWS


def context(template: str, size: int) -> tuple[list[str], list[str]]:
    """Return the ``size`` words on each side of a template's gap."""
    left, right = re.split(r"\{[^}]*\}", template, maxsplit=1)
    return left.split()[-size:], right.split()[:size]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the share of distinct fillings of the reference texts and of the samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="folder with E2E's trainset.csv, devset.csv and testset_w_refs.csv")
    parser.add_argument("--texts", required=True, help="infilled samples that benchmarks/control.py saved")
    options = parser.parse_args(arguments)

    def run() -> None:
        training = [text.split() for text in E2E(options.folder).load()["train"]["text"][:]]
        try:
            rows = [json.loads(line) for line in Path(options.texts).read_text().splitlines()[1:]]
        except (OSError, ValueError) as error:
            raise UserError(f"--texts: expected a file of samples that benchmarks/control.py saved: {error}") from None
        for size in (1, 2):
            shares = []
            for row in rows:
                (control,) = read_controls(row["controls"])
                assert isinstance(control, Infill)
                counts = fillings(training, *context(control.template, size))
                if counts.total() >= MINIMUM:
                    shares.append((distinct_share(counts, len(row["texts"])), len(set(row["texts"])) / len(row["texts"])))
            if not shares:
                raise UserError(f"--texts: no gap has {MINIMUM} fillings or more in the training texts")
            reference, samples = (sum(share) / len(shares) for share in zip(*shares, strict=True))
            gaps = f"{len(shares)} of {len(rows)} gaps"
            print(f"{size} on each side, {gaps}: distinct {reference:.1%} (reference), {samples:.1%} (samples)", flush=True)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
