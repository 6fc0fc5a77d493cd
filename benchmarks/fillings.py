"""How often the fillings of a gap are the same where people filled it: what variety infilled texts can have at most.

    python benchmarks/fillings.py --folder E2E --texts results/control-e2e/texts/RUN-e2e-infilling-HASH.jsonl

For each gap that was asked for, all fillings of one to six words are counted that training texts have between the same words,
one or two on each side. As many as there are texts are drawn of them, a thousand times. Gaps with fewer than 20 such
places are left out. A line for each number of words around goes to stdout.
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

LONGEST, LEAST, DRAWS = 6, 20, 1000


def fillings(texts: Sequence[Sequence[str]], left: Sequence[str], right: Sequence[str]) -> Counter[str]:
    """Count what stands between the words ``left`` and ``right`` in ``texts``; no words are a text's start or end."""
    found: Counter[str] = Counter()
    for text in texts:
        for first in range(len(left), len(text)):
            if list(text[first - len(left) : first]) != list(left) or (not left and first):
                continue
            for end in range(first + 1, min(first + LONGEST, len(text)) + 1):
                if list(text[end : end + len(right)]) == list(right) and (right or end == len(text)):
                    found[" ".join(text[first:end])] += 1
    return found


def distinct(found: Counter[str], count: int) -> float:
    """Return the share of ``count`` draws that are distinct, on average."""
    draws, known = random.Random(0), list(found.elements())
    return sum(len(set(draws.choices(known, k=count))) / count for _ in range(DRAWS)) / DRAWS


def around(template: str, words: int) -> tuple[list[str], list[str]]:
    """Return so many words on each side of a template's gap."""
    left, right = re.split(r"\{[^}]*\}", template, maxsplit=1)
    return left.split()[-words:], right.split()[:words]


def main(words: Sequence[str] | None = None) -> int:
    """Count, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="of E2E's trainset.csv, devset.csv and testset_w_refs.csv")
    parser.add_argument("--texts", required=True, help="infilled texts, as benchmarks/control.py keeps them")
    options = parser.parse_args(words)

    def ask() -> None:
        known = [text.split() for text in E2E(options.folder).load()["train"]["text"][:]]
        try:
            rows = [json.loads(line) for line in Path(options.texts).read_text().splitlines()[1:]]
        except (OSError, ValueError) as error:
            raise UserError(f"--texts: expected a file of texts that benchmarks/control.py wrote: {error}") from None
        for size in (1, 2):
            shares = []
            for row in rows:
                (control,) = read_controls(row["controls"])
                assert isinstance(control, Infill)
                found = fillings(known, *around(control.template, size))
                if found.total() >= LEAST:
                    shares.append((distinct(found, len(row["texts"])), len(set(row["texts"])) / len(row["texts"])))
            if not shares:
                raise UserError(f"--texts: of no gap there are {LEAST} fillings in the training texts")
            people, ours = (sum(share) / len(shares) for share in zip(*shares, strict=True))
            gaps = f"{len(shares)} of {len(rows)} gaps"
            print(f"{size} on each side, {gaps}: people's distinct {people:.1%}, ours {ours:.1%}", flush=True)

    return exit_status(ask)


if __name__ == "__main__":
    sys.exit(main())
