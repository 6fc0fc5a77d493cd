"""Build the documentation site: what ``mkdocs.yml`` calls while it reads and renders the pages of ``docs/``."""

from __future__ import annotations

import re
from pathlib import Path

import commands_reference
import equations
import notebook_pages
import settings_reference
import source_code
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from repository import ELSEWHERE, ROOT, linked_sources, outside_code, rewrite_links, site_path, source_page

GENERATED = {  # pages with this mark have the text that a function makes in its place
    "<!-- settings -->": settings_reference.markdown,
    "<!-- commands -->": commands_reference.markdown,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose text is elsewhere in the repository: documents, notebooks, and code that a page links to."""
    texts = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    made = {uri: (ROOT / path).read_text() for path, uri in ELSEWHERE.items()}
    texts |= {path: made[uri] for path, uri in ELSEWHERE.items()}
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        path = f"docs/{notebook.src_uri}"
        made[site_path(path) or ""] = texts[path] = notebook_pages.markdown(ROOT / path)
    made |= {site_path(path) or "": source_page(path) for path in linked_sources(texts)}
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's Markdown with generated text, the code that it names, and links as the site has them."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown
    for mark, make in GENERATED.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    markdown = rewrite_links(source_code.include(markdown, Path("docs") / uri), uri)
    return _plain_pipes(outside_code(equations.to_mathml, markdown))


def _plain_pipes(markdown: str) -> str:
    """Return ``markdown`` with pipes in the inline code of tables as they are, which GitHub needs to have escaped."""

    def row(match: re.Match[str]) -> str:
        return re.sub(r"`[^`]+`", lambda code: code[0].replace(r"\|", "|"), match[0])

    return re.sub(r"^\|.*$", row, markdown, flags=re.MULTILINE)
