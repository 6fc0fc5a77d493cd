"""Equations: LaTeX between dollar signs, as GitHub reads it, to MathML, which browsers draw without any script."""

from __future__ import annotations

import re

from latex2mathml.converter import convert

DISPLAYED = re.compile(r"^\$\$\n?(.+?)\n?\$\$$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<![\\$\w])\$(?=[^\s$])([^$\n]+?)(?<=\S)\$(?![\w$])")


def to_mathml(markdown: str) -> str:
    """Return ``markdown`` with its equations as MathML."""
    markdown = DISPLAYED.sub(lambda match: f"<div>{convert(match[1], display='block')}</div>", markdown)
    return INLINE.sub(lambda match: f"<span>{convert(match[1])}</span>", markdown)  # a <math> would begin a block
