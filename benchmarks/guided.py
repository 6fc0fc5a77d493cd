"""Speed of controlled sampling: CPU time per sample with controls over that without, and of choosing among many candidates.

    python benchmarks/guided.py RUN [--texts 32] [--rounds 3] [--evaluations 0 32] [--every 1 3]

RUN is a run on the restaurants corpus with classifiers ``attributes`` and ``tags``. A row is a kind of control at a budget: 0
stands for the run's own sampling settings, other numbers for so many network evaluations per sample (``--evaluations`` of
``generate``). Every measurement is a complete call that samples ``--texts`` texts, length prior, draft, sampling steps, sweeps
and checks included, with one candidate and one try. Controls are compiled once, before the first round (*compile*: CPU seconds
for each). Both calls of a ratio have the same settings and take turns in one process, so that other jobs of the machine slow
both; ratios are medians over rounds.

*ratio* is CPU time per text. Controls change the lengths of texts and with them the cost, so *at equal length* divides both
times by the positions of a network evaluation (padding counted). *success* is the share of texts that pass their check,
*accepted* the share that the grammar accepts; both are over the texts of all rounds and need no judge. *backward* and
*classifier* are the evaluations per text with a gradient through the network, and those of classifiers.

With ``--every N`` the rows of exact constraints at the run's own settings are also measured with a gradient of the constraint
at every N-th evaluation (*every*; ``--guidance.constraint_every``, of which the default is 2).

Then the choice of the best of ``--candidates`` by minimum Bayes risk: CPU time of sampling them, and of all pairs of texts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, exit_status, expect_positive
from tabulate import tabulate

from diffusionlm import Pipeline
from diffusionlm.config import UserError
from diffusionlm.controls import read_controls
from diffusionlm.data.typical import agreements
from diffusionlm.evaluation.provenance import corpus_of, machine
from diffusionlm.files import write_text
from diffusionlm.models.io import fingerprint
from diffusionlm.pipelines.base import SamplingConfig
from diffusionlm.pipelines.cost import first_tensor, metered

UNGUIDED = "none"
TAGS = (
    "ADP DET ADJ NOUN PUNCT DET PROPN PROPN VERB ADJ NOUN PUNCT ADP ADJ NOUN PUNCT NOUN VERB ADP DET NOUN PUNCT",
    "PRON AUX VERB ADJ NOUN ADP DET PROPN PROPN PUNCT DET ADJ NOUN PUNCT NOUN VERB SCONJ DET NOUN AUX ADJ PUNCT",
    "ADP DET NOUN NOUN PUNCT PRON AUX DET ADJ NOUN ADV DET NOUN AUX ADV ADJ PUNCT",
)
CONTROLS: dict[str, tuple[str, ...]] = {  # a round takes the next expression of each row
    UNGUIDED: ("",),
    "attribute": ('Attribute("food", "Japanese")', 'Attribute("price", "low")', 'Attribute("area", "riverside")'),
    "length": ("Length(20)", "Length(16, 18)", "Length(28)"),
    "words": ('Words("pub", "staff")', 'Words("cheap")', 'Words("food", "prices", in_order=True)'),
    "pattern": tuple(
        f"Pattern({json.dumps(pattern)})"
        for pattern in (r".* (cheap|affordable) .* \.", r".+ because .{2,8} \.", r".* (Italian|Greek) .+ , .* \.")
    ),
    "parts of speech": tuple(f'PartsOfSpeech("{tags}")' for tags in TAGS),
    "infilling": (
        'Infill("The Golden Lion is {} because {} .")',
        'Infill("If you {} , visit {} . It is {} .")',
        'Infill("On the outskirts , {} and the {1} are {} .")',
    ),
    "attribute, length": (
        'Attribute("food", "Japanese") & Length(20)',
        'Attribute("price", "low") & Length(16, 18)',
        'Attribute("area", "riverside") & Length(28)',
    ),
    "attribute, words": (
        'Attribute("food", "Japanese") & Words("rating")',
        'Attribute("price", "low") & Words("pub")',
        'Attribute("area", "riverside") & Words("staff")',
    ),
}  # fmt: skip
EXACT = ("words", "pattern", "parts of speech", "infilling")  # a length alone has no gradient
SPEEDS = (1, 2, 4, 8, 32, 62)  # evaluations of the unguided rows


@dataclass
class Row:
    """The measurements of a kind of control at a number of evaluations, 0 for the run's own settings; lists are by round."""

    control: str
    evaluations: int
    every: int = 0  # constraint_every, 0 for the run's own
    compile: float = 0.0  # CPU seconds for each control
    seconds: list[float] = field(default_factory=list)  # CPU seconds per text
    positions: list[float] = field(default_factory=list)  # per evaluation, padding counted
    counts: dict[str, float] = field(default_factory=dict)  # per text
    success: list[bool] = field(default_factory=list)  # by text
    accepted: list[bool] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)  # of the texts of each round


@contextmanager
def widths(pipeline: Pipeline) -> Iterator[list[float]]:
    """Collect the number of positions of each evaluated row while the context lasts."""
    found: list[float] = []

    def evaluated(network: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = first_tensor(arguments, named)
        found.extend([first.shape[1]] * len(first))

    hook = torch.nn.Module.register_forward_pre_hook(pipeline.network, evaluated, with_kwargs=True)
    yield found
    hook.remove()


def settings(pipeline: Pipeline, row: Row, seed: int) -> SamplingConfig:
    """Return the sampling settings of a row."""
    changed = pipeline.changed({"guidance": {"constraint_every": row.every}} if row.every else {})
    own = replace(changed, candidates=1, seed=seed)
    return own if not row.evaluations else pipeline.with_evaluations(own, row.evaluations)


def measure(pipeline: Pipeline, row: Row, number: int, texts: int) -> None:
    """Sample the texts of round ``number`` for a row, and add what is measured."""
    expression = CONTROLS[row.control][number % len(CONTROLS[row.control])]
    controls = [expression] if expression else []
    sampling = settings(pipeline, row, number)
    with widths(pipeline) as positions, metered(pipeline, pipeline.binding.networks) as meter:
        found = list(pipeline.stream(texts, sampling, None, controls))
    row.seconds.append(meter.cpu_seconds / texts)
    row.positions.append(statistics.mean(positions))
    for name in ("evaluations", "backwards", "classifications"):
        row.counts[name] = row.counts.get(name, 0) + getattr(meter, name) / texts
    annotate = pipeline.binding.annotator.annotate
    row.accepted += [annotate(each.text) is not None for each in found]
    row.success += [all(outcome.passed for outcome in getattr(each, "controls", ())) for each in found]
    row.digests.append(hashlib.sha256("\n".join(each.text for each in found).encode()).hexdigest()[:8])


def measured(pipeline: Pipeline, rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Measure all rows in turn, round by round."""
    list(pipeline.stream(1))  # the first call of all is slower
    for row in rows:
        expressions = list(filter(None, CONTROLS[row.control]))
        begun = time.process_time()
        for expression in expressions:
            pipeline.steering(read_controls([expression]), pipeline.sampling)
        row.compile = (time.process_time() - begun) / max(1, len(expressions))
    for number in range(options.rounds):
        for row in rows:
            measure(pipeline, row, number, options.texts)
            print(
                f"{number + 1} {row.control}, {row.evaluations}, {row.every}: {row.seconds[-1]:.3f} s",
                file=sys.stderr,
                flush=True,
            )
    for row in rows:
        row.counts = {name: value / options.rounds for name, value in row.counts.items()}


def ratios(row: Row, base: Row) -> tuple[float, float]:
    """Return the median over rounds of CPU time per text over that of ``base``, and of CPU time per text and position."""
    pairs = list(zip(row.seconds, base.seconds, row.positions, base.positions, strict=True))
    return statistics.median(a / b for a, b, _, _ in pairs), statistics.median(a * q / (b * p) for a, b, p, q in pairs)


def chosen(pipeline: Pipeline, candidates: int, evaluations: int) -> dict[str, float]:
    """Return the CPU seconds of sampling ``candidates``, of comparing all pairs of them, and of the call that does both."""
    sampling = pipeline.with_evaluations(replace(pipeline.sampling, batch_size=candidates), evaluations)
    begun = time.process_time()
    texts = [row.text for row in pipeline.stream(candidates, replace(sampling, candidates=1))]
    sampled = time.process_time()
    agreements(texts)
    compared = time.process_time()
    list(pipeline.stream(1, replace(sampling, candidates=candidates)))
    together = time.process_time() - compared
    return {"evaluations": evaluations, "sampling": sampled - begun, "pairs": compared - sampled, "together": together}


def share(found: Sequence[bool]) -> str:
    """Return a share in percent with its standard error."""
    p = statistics.mean(map(float, found))
    return f"{100 * p:.1f} ± {100 * (p * (1 - p) / len(found)) ** 0.5:.1f}"


def table(rows: Sequence[Row]) -> str:
    """Return the table of all rows with controls, and that of the speed without."""
    base = {row.evaluations: row for row in rows if row.control == UNGUIDED}
    lines = []
    for row in rows:
        per_text, at_length = ratios(row, base[row.evaluations])
        cells = [f"{row.counts.get(name, 0):.0f}" for name in ("evaluations", "backwards", "classifications")]
        lines.append(
            [row.control, row.evaluations or "own", row.every or "own", f"{statistics.median(row.seconds):.4f}",
             f"{per_text:.2f}", f"{at_length:.2f}", share(row.success), share(row.accepted), *cells, f"{row.compile:.2f}"]
        )  # fmt: skip
    heads = ["control", "budget", "every", "CPU s / text", "ratio", "at equal length", "success, %", "accepted, %"]
    return tabulate(lines, [*heads, "evaluations", "backward", "classifier", "compile, s"], disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and save them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="run on the restaurants corpus with classifiers attributes and tags")
    parser.add_argument("--texts", type=int, default=32, help="texts of a measurement (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each row (%(default)s)")
    parser.add_argument("--evaluations", type=int, nargs="*", default=[0, 32], help="budgets; 0: the run's settings (0 32)")
    parser.add_argument("--every", type=int, nargs="*", default=[], help="other values of constraint_every to measure")
    parser.add_argument("--controls", nargs="*", default=[*CONTROLS][1:], choices=[*CONTROLS][1:], metavar="ROW", help="(all)")
    parser.add_argument("--speeds", type=int, nargs="*", default=SPEEDS, help="evaluations without controls (1 2 4 8 32 62)")
    parser.add_argument("--candidates", type=int, default=50, help="candidates of which the best is chosen (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the results (%(default)s)")
    options = parser.parse_args(arguments)
    expect_positive(parser, options, "texts", "rounds", "candidates", "threads")
    torch.set_num_threads(options.threads)
    pipeline = Pipeline.from_pretrained(options.run)
    if "accepted" not in corpus_of([options.run]).metrics([]):
        raise UserError(f"{options.run}: expected a run on the restaurants corpus, whose grammar accepts or rejects each text")
    budgets = list(dict.fromkeys(options.evaluations))
    plain = [Row(UNGUIDED, n) for n in dict.fromkeys([*budgets, *options.speeds])]
    rows = [*plain, *(Row(control, n) for n in budgets for control in options.controls)]
    rows += [Row(control, 0, every) for every in options.every for control in options.controls if control in EXACT]
    measured(pipeline, rows, options)
    best = [chosen(pipeline, options.candidates, n) for n in (8, 32)] if options.candidates > 1 else []
    result = {
        "rows": [{**asdict(row), "controls": CONTROLS[row.control]} for row in rows], "candidates": best,
        "texts": options.texts, "fingerprint": fingerprint(options.run), "machine": machine(),
    }  # fmt: skip
    place = Path(options.results) / "guided"
    write_text(place / "guided.json", json.dumps(result, indent=1) + "\n")
    lines = [[each["evaluations"], *(f"{each[name]:.3f}" for name in ("sampling", "pairs", "together"))] for each in best]
    heads = ["evaluations", f"sampling {options.candidates}, s", "all pairs, s", "one call that does both, s"]
    text = table(rows) + "\n" + ("\n" + tabulate(lines, heads, disable_numparse=True) + "\n" if best else "")
    write_text(place / "table.txt", text)
    print(text, end="")


if __name__ == "__main__":
    sys.exit(exit_status(main))
