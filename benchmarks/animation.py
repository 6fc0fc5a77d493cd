"""Record what ``diffusionlm generate RUN --watch`` shows as an animated SVG, the figure at the top of the README.

    python benchmarks/animation.py RUN --out docs/watch.svg [--control EXPRESSION] [--length N] [--count 7] [--seed 0]

Every frame is one sampling step: the most probable token at each position, drawn the brighter the higher its predicted
probability. The last frame shows the finished samples, after the refinement sweeps. The file contains no script and no font;
a viewer without animation, or with the setting "prefers reduced motion", shows the last frame.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from measure import exit_status
from transformers import PreTrainedTokenizerFast

from diffusionlm.controls import read_controls
from diffusionlm.core.sampler import State
from diffusionlm.data.tokenizers import decode_texts
from diffusionlm.pipelines.diffusion import Pipeline
from diffusionlm.pipelines.rows import Controlled

SECONDS_PER_STEP, SECONDS_AT_THE_END = 0.24, 4.5
FONT_SIZE, CHARACTER, LINE, MARGIN, TOP = 14, 8.4, 25, 22, 74  # pixels
LEVELS = (0.35, 0.6, 0.85)  # predicted probabilities that separate the four brightnesses
STYLE = """
text { font: %dpx ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; white-space: pre }
.card { fill: #0d1117; stroke: #30363d } .quiet { fill: #7d8590 } .bar { fill: #30363d } .noise { fill: #a371f7 }
.p0 { fill: #484f58 } .p1 { fill: #6e7ca0 } .p2 { fill: #9ecbff } .p3 { fill: #f0f6fc } .ok { fill: #3fb950 }
.no { fill: #f85149 }
.frame { visibility: hidden } .last { visibility: visible }
@media (prefers-reduced-motion) { g { animation: none !important } }
"""


@dataclass(frozen=True)
class Frame:
    """One sampling step: ``lines`` of pieces of text, each piece with its brightness from 0 to 3.

    ``t`` is the diffusion time in [0, 1], ``caption`` the step's title. ``marks``, drawn before the lines, say whether each
    sample satisfies the control (``ok``) or not (``no``); there are none without a control.
    """

    t: float
    caption: str
    lines: list[list[tuple[str, int]]]
    marks: tuple[str, ...] = ()


def record(pipeline: Pipeline, count: int, seed: int, length: int | None, control: str | None) -> list[Frame]:
    """Sample ``count`` texts and return one frame per sampling step and one of the finished samples."""
    sampling = pipeline.changed({"seed": seed, "length": length, "batch_size": max(count, pipeline.sampling.batch_size)})
    frames: list[Frame] = []

    def watch(state: State, texts: list[str]) -> None:
        probabilities = state.denoised.logits.softmax(-1)
        lines = []
        for row, text in zip(probabilities, texts[:count], strict=False):
            ids = pipeline.tokenizer(text)["input_ids"]
            predicted = row[range(len(ids)), ids].tolist() if len(ids) <= len(row) else [1.0] * len(ids)
            lines.append(pieces(pipeline.tokenizer, ids[1:-1], predicted[1:-1]))
        frames.append(Frame(state.t, f"step {state.step:>2}   t = {state.t:.2f}", lines))

    rows = list(pipeline.stream(count, sampling, watch, read_controls([control] if control else [])))
    finished = [[(row.text, 3)] for row in rows]
    marks = ["ok" if all(each.passed for each in row.controls) else "no" for row in rows if isinstance(row, Controlled)]
    steps = [frame for number, frame in enumerate(frames) if not number or frame.caption != frames[number - 1].caption]
    return [*steps, Frame(0, "finished", finished, tuple(marks))]


def pieces(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], predicted: Sequence[float]) -> list[tuple[str, int]]:
    """Return the tokens' text with its brightness; adjacent tokens with the same brightness are joined."""
    prefixes = ["", *decode_texts(tokenizer, [list(ids[: n + 1]) for n in range(len(ids))])]
    levels = [sum(p > level for level in LEVELS) for p in predicted]
    found = [(text[len(before) :], level) for (before, text), level in zip(itertools.pairwise(prefixes), levels, strict=True)]
    groups = itertools.groupby(found, key=lambda piece: piece[1])
    return [("".join(text for text, _ in group), level) for level, group in groups]


def svg(frames: Sequence[Frame], command: str, only: int | None = None) -> str:
    """Return the animation of ``frames`` as SVG, or a still image of the frame with the number ``only``."""
    columns = max([len(command) + 2, *(len("".join(text for text, _ in line)) + 2 for frame in frames for line in frame.lines)])
    width, height = 2 * MARGIN + columns * CHARACTER, TOP + len(frames[0].lines) * LINE + MARGIN - 8
    total = SECONDS_PER_STEP * (len(frames) - 1) + SECONDS_AT_THE_END
    shown = [frames[only]] if only is not None else frames
    rules, groups = [], []
    for number, frame in enumerate(shown):
        start, end = (100 * SECONDS_PER_STEP * (number + step) / total for step in (0, 1))
        last = number == len(shown) - 1
        after = "" if last else f" {end:.2f}% {{ visibility: hidden }}"
        rules.append(f"@keyframes f{number} {{ 0% {{ visibility: hidden }} {start:.2f}% {{ visibility: visible }}{after} }}")
        animation = "" if only is not None else f' style="animation: f{number} {total:.2f}s step-end infinite"'
        groups.append(f'<g class="frame{" last" if last else ""}"{animation}>{elements(frame, width)}</g>')
    body = [
        f'<rect class="card" x=".5" y=".5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="8"/>',
        line(MARGIN, 34, [("$ ", "quiet"), (command, "p3")]),
        *groups,
    ]
    style = STYLE % FONT_SIZE + ("" if only is not None else "\n".join(rules))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img">'
        f"<title>Noise becomes words, one sampling step per frame</title><style>{style}</style>{''.join(body)}</svg>\n"
    )


def elements(frame: Frame, width: float) -> str:
    """Return the SVG elements of one frame: the noise bar with its caption, then the lines."""
    x = width - MARGIN - 120
    parts = [
        f'<rect class="bar" x="{x:.0f}" y="49" width="120" height="4" rx="2"/>',
        f'<rect class="noise" x="{x:.0f}" y="49" width="{120 * frame.t:.0f}" height="4" rx="2"/>',
        line(MARGIN, 55, [(frame.caption, "quiet")]),
    ]
    for number, (pieces, mark) in enumerate(itertools.zip_longest(frame.lines, frame.marks)):
        signed = [(f"{'✓' if mark == 'ok' else '✗'} ", mark)] if mark else [("  ", "quiet")]
        parts.append(line(MARGIN, TOP + LINE * number + 12, [*signed, *((text, f"p{level}") for text, level in pieces)]))
    return "".join(parts)


def line(x: float, y: float, pieces: Sequence[tuple[str, str]]) -> str:
    """Return a line of text as SVG; ``textLength`` sets every character's width to ``CHARACTER`` in any monospaced font."""
    spans = "".join(f'<tspan class="{kind}">{escape(text)}</tspan>' for text, kind in pieces)
    length = CHARACTER * sum(len(text) for text, _ in pieces)
    return f'<text x="{x}" y="{y}" textLength="{length:.0f}" xml:space="preserve">{spans}</text>'


def main(arguments: Sequence[str] | None = None) -> None:
    """Record a run and write the SVG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run or of a model")
    parser.add_argument("--out", default="docs/watch.svg", metavar="FILE", help="the SVG file (%(default)s)")
    parser.add_argument("--count", type=int, default=7, help="samples, one per line (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the samples (%(default)s)")
    parser.add_argument("--length", type=int, help="tokens per sample (drawn from the training lengths)")
    parser.add_argument("--control", metavar="EXPRESSION", help="a control, as in diffusionlm generate")
    options = parser.parse_args(arguments)
    frames = record(Pipeline.from_pretrained(options.run), options.count, options.seed, options.length, options.control)
    control = f" --control '{options.control}'" if options.control else ""
    length = f" --length {options.length}" if options.length else ""
    command = f"diffusionlm generate {options.run}{control}{length} --watch"
    Path(options.out).write_text(svg(frames, command), encoding="utf-8")
    print(f"{options.out}: {len(frames)} frames, {Path(options.out).stat().st_size / 1000:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(exit_status(main))
