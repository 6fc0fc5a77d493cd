"""Pages of the site whose text is elsewhere in the repository, and links between pages as the site has them.

Pages link to each other by paths in the repository, so that links work where the repository is read. The site has the same
pages at other paths: their links are rewritten when they are rendered.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {  # path in the repository -> path in the site
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "data/README.md": "restaurants.md",
    "examples/README.md": "examples.md",
    "README.md": "readme.md",
}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml", ".cff": "yaml"}
CODE = r"^ *```.*?^ *```|`[^`\n]+`"
LINK = re.compile(rf"({CODE})|\[([\w./-]+\.md)\]\(([^)\s]+)\)|(?<=\])\(([^)\s]+)\)", re.DOTALL | re.MULTILINE)


def site_path(path: str) -> str | None:
    """Return where the site has the file ``path`` of the repository; None where it has not."""
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    if path.startswith("docs/"):
        return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))
    return f"source/{path}.md" if Path(path).suffix in LANGUAGES and (ROOT / path).is_file() else None


def repository_path(uri: str) -> str:
    """Return the path in the repository of the site's page ``uri``."""
    return {site: path for path, site in ELSEWHERE.items()}.get(uri, f"docs/{uri}")


def rewrite_links(markdown: str, uri: str) -> str:
    """Return the Markdown of the page ``uri`` with links to where the site has their targets."""
    return LINK.sub(partial(_rewritten, uri=uri, folder=posixpath.dirname(repository_path(uri))), markdown)


def linked_sources(pages: dict[str, str]) -> set[str]:
    """Return the code and settings files of the repository that ``pages``, Markdown by path in the repository, link to."""
    found = set()
    for page, markdown in pages.items():
        for match in LINK.finditer(markdown):
            path = _target(match[3] or match[4] or "", posixpath.dirname(page))[0]
            if (site_path(path) or "").startswith("source/"):
                found.add(path)
    return found


def source_page(path: str) -> str:
    """Return the Markdown of a page that shows the file ``path``."""
    return f"# {path}\n\n````{LANGUAGES[Path(path).suffix]}\n{(ROOT / path).read_text()}\n````\n"


def outside_code(change: Callable[[str], str], markdown: str) -> str:
    """Return ``markdown`` with ``change`` applied to all that is neither in a code block nor in inline code."""
    pieces = re.split(rf"({CODE})", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(piece if number % 2 else change(piece) for number, piece in enumerate(pieces))


def _target(link: str, folder: str) -> tuple[str, str]:
    path, mark, anchor = link.partition("#")
    return (posixpath.normpath(posixpath.join(folder, path)) if path else ""), mark + anchor


def _rewritten(match: re.Match[str], uri: str, folder: str) -> str:
    """Return a link as the site has it; one whose text is a file's name has the title of the page in its place."""
    code, name, named, other = match.groups()
    link = named or other
    if code or "://" in link or link.startswith("#"):
        return match[0]
    path, anchor = _target(link, folder)
    target = site_path(path)
    if target is None:
        return match[0]
    shown = f"[{title(path)}]" if name else ""
    return f"{shown}({posixpath.relpath(target, posixpath.dirname(uri) or '.')}{anchor})"


def title(path: str) -> str:
    """Return the first heading of the Markdown file ``path``."""
    return next(line[2:] for line in (ROOT / path).read_text().splitlines() if line.startswith("# "))
