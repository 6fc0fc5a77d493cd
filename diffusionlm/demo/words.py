"""Texts of the demo as HTML: words with a shade by certainty, checks, refusals, progress."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from diffusionlm.demo.sampling import CERTAIN, Check, Frame, Piece, Sampled

MARKS = {True: ("✓", "holds"), False: ("✗", "does not hold"), None: ("?", "cannot be checked")}


def frame_html(frame: Frame) -> str:
    """Return a sampling step as a list of texts."""
    return _listed([f'<p class="sample">{_words(pieces)}</p>' for pieces in frame.texts])


def samples_html(found: Sampled) -> str:
    """Return finished texts as a list, each with its checks."""
    items = [
        f'<p class="sample">{escape(row.text)}</p>{_checks(checks)}'
        for row, checks in zip(found.rows, found.checks, strict=True)
    ]
    return _listed(items)


def refusal_html(sentence: str) -> str:
    """Return why nothing is sampled."""
    return f'<p class="refusal" role="alert"><strong>Not possible:</strong> {escape(sentence)}</p>'


def progress_html(t: float) -> str:
    """Return a bar that shows how far the sampling is at time ``t``, which falls from 1 to 0."""
    return f'<p class="progress"><label>Sampling <progress max="1" value="{1 - t:.3f}"></progress></label></p>'


def status_html(sentences: Sequence[str]) -> str:
    """Return sentences about finished texts, which a screen reader reads aloud."""
    return "".join(f'<p role="status">{escape(sentence)}.</p>' for sentence in sentences)


def outcome(found: Sampled) -> str:
    """Return one sentence about finished texts: how many there are, pass all checks, and what they cost."""
    good = sum(all(check.passed is not False for check in checks) for checks in found.checks)
    count = len(found.rows)
    checked = f", {good} of which pass{'es' * (good == 1)} all checks" if any(found.checks) else ""
    return f"{count} text{'s' * (count != 1)}{checked}; {found.evaluations:,.6g} network evaluations per text"


def _words(pieces: Sequence[Piece]) -> str:
    return "".join(_shaded(text, level) for text, level in pieces)


def _shaded(text: str, level: int) -> str:
    """Return a piece with its shade, which the blank before a word has not."""
    word = text.lstrip()
    if level == CERTAIN or not word:
        return escape(text)
    return f'{escape(text[: -len(word)])}<span class="c{level}">{escape(word)}</span>'


def _checks(checks: Sequence[Check]) -> str:
    if not checks:
        return ""
    items = []
    for check in checks:
        mark, meaning = MARKS[check.passed]
        kind = {True: "yes", False: "no", None: "open"}[check.passed]
        items.append(
            f'<li class="{kind}"><span aria-hidden="true">{mark}</span>'
            f'<span class="spoken">{meaning}: </span>{escape(check.name)}</li>'
        )
    return f'<ul class="checks">{"".join(items)}</ul>'


def _listed(items: Sequence[str]) -> str:
    return f'<ol class="samples">{"".join(f"<li>{item}</li>" for item in items)}</ol>'
