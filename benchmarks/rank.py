"""Rank outputs that were sampled already: of several for each source, keep the best one by each ranking.

    python benchmarks/rank.py OUTPUTS.jsonl --out NAME

OUTPUTS.jsonl has rows of ``source`` and ``text``, those of one source together, as ``evaluate --references --count 10``
writes them into ``texts/``. Written are NAME-mbr.jsonl, the best by minimum Bayes risk, and NAME-slots.jsonl, the best by MBR
among those with the fewest slot errors, for ``evaluate --references --texts``. So one sampling serves both rankings.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from measure import exit_status

from diffusionlm.config import UserError
from diffusionlm.data.reading import read_text
from diffusionlm.evaluation.slots import realised
from diffusionlm.files import write_text
from diffusionlm.pipelines.base import BasePipeline, SamplingConfig
from diffusionlm.pipelines.conditioning import Requested
from diffusionlm.pipelines.ranking import Candidates, FunctionRanking, MinimumBayesRisk, Ranking

RANKINGS: dict[str, Ranking] = {"mbr": MinimumBayesRisk(), "slots": FunctionRanking(realised)}


def best(rows: Sequence[dict[str, str]], ranking: Ranking) -> list[dict[str, str]]:
    """Return the best of the consecutive ``rows`` of each source."""
    groups = [[n for n, _ in group] for _, group in itertools.groupby(enumerate(rows), lambda each: each[1]["source"])]
    requests, texts = [Requested(source=row["source"]) for row in rows], [row["text"] for row in rows]
    nothing = cast("BasePipeline[Any]", None)  # neither ranking asks the model
    candidates = Candidates(nothing, SamplingConfig(), range(len(rows)), requests, [()] * len(rows), texts, groups)
    return [rows[number] for number in ranking.best(candidates, groups)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the outputs and write the best by each ranking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", type=Path, help="rows of source and text")
    parser.add_argument("--out", required=True, metavar="NAME", help="start of the names of the files to write")
    options = parser.parse_args(arguments)

    def run() -> None:
        rows = [json.loads(line) for line in read_text(options.outputs).splitlines()]
        if wrong := next((number for number, row in enumerate(rows, 1) if not {"source", "text"} <= {*row}), None):
            raise UserError(f"{options.outputs}, line {wrong}: expected a source and a text, got {', '.join(rows[wrong - 1])}")
        for name, ranking in RANKINGS.items():
            kept = ({key: row[key] for key in ("source", "text")} for row in best(rows, ranking))
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
            write_text(Path(f"{options.out}-{name}.jsonl"), "".join(lines))
            print(f"{options.out}-{name}.jsonl: {len(lines)} of {len(rows)} outputs")

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
