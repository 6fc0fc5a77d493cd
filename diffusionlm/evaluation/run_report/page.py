"""The parts of an HTML page that needs no other file: every text is escaped, a figure is an SVG inside the page."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from diffusionlm import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 62rem; margin: 2rem auto }
body { padding: 0 1rem }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #999 }
img { max-width: 100%; height: auto }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ccc; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
th { background: #f2f2f2 }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .85rem }
p.text { margin: 0 0 .4rem }
div.wide { overflow-x: auto }
summary { cursor: pointer }
"""
WITHOUT_FIGURES = "The figure is missing: matplotlib is not installed (pip install matplotlib)."


def page(title: str, sections: Mapping[str, str]) -> str:
    """Return an HTML document with the HTML of each of ``sections`` under its heading."""
    body = "".join(f"<section>\n<h2>{escape(heading)}</h2>\n{html}</section>\n" for heading, html in sections.items())
    head = f'<meta charset="utf-8">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n'
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}</body>\n</html>\n'
    )


def heading(text: str) -> str:
    """Return the heading of a part of a section."""
    return f"<h3>{escape(text)}</h3>\n"


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(text)}</p>\n"


def preformatted(text: str) -> str:
    """Return text with its line breaks and blanks."""
    return f"<pre>{escape(text)}</pre>\n"


def hidden(summary: str, html: str) -> str:
    """Return ``html`` that a click on ``summary`` shows."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{html}</details>\n"


def facts(rows: Mapping[str, object]) -> str:
    """Return a table of names and values."""
    lines = (f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>\n' for name, value in rows.items())
    return f"<table>\n{''.join(lines)}</table>\n"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a table of cells by column, numbers at the right; a column that a row lacks has a dash there."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    lines = ["".join(map(_cell, (row.get(name, "-") for name in columns))) for row in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n'


def _cell(text: str) -> str:
    kind = ' class="number"' if text[:1].isdigit() or text[:1] in ("-", ".") else ""
    return f"<td{kind}>{escape(text)}</td>"


def texts_by_step(samples: Iterable[tuple[int, Sequence[str]]]) -> str:
    """Return a table of texts, those of each step in one cell."""
    lines = []
    for step, texts in samples:
        cell = "".join(f'<p class="text">{escape(text)}</p>' for text in texts)
        lines.append(f'<tr><td class="number">{step}</td><td>{cell}</td></tr>\n')
    head = '<th scope="col">step</th><th scope="col">samples</th>'
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody></table>\n"


def figure(draw: Callable[[], Figure], description: str) -> str:
    """Return the figure that ``draw`` makes, or a sentence where matplotlib is not installed."""
    if not plots.available():
        return paragraph(WITHOUT_FIGURES)
    return _image("svg+xml", plots.svg(draw).encode(), description)


def picture(path: Path, description: str) -> str:
    """Return a saved PNG."""
    return _image("png", path.read_bytes(), description)


def _image(kind: str, data: bytes, description: str) -> str:
    # As an image, so that names inside one SVG do not meet those of another.
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<p><img alt="{escape(description)}" src="{source}"></p>\n'
