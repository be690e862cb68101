"""Hooks of the site: README, CONTRIBUTING and CHANGELOG as pages, links of notebooks."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
#: page of the site -> file at the top of the repository
TOP = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}


def on_files(files: Files, *, config: MkDocsConfig, **_: object) -> Files:
    """Add the pages, with the links that they have in the repository made those of the site."""
    for page, name in TOP.items():
        text = re.sub(r"\]\((?:docs/)?([^)#:]+)", _on_site, (ROOT / name).read_text())
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let pages below docs/ link to the files at the top, as the repository's own view needs it."""
    return re.sub(r"\]\(\.\./([A-Z]+\.md)", _on_site, markdown)


def on_page_content(html: str, *, page: Page, **_: object) -> str:
    """Make what a notebook links to pages of the site, and docstrings' `::` the end of a line."""
    if page.file.src_uri.endswith(".ipynb"):
        return re.sub(r'href="(\w+)\.md', r'href="../\1/', html)
    return html.replace("<p>::</p>", "").replace("::</p>", ":</p>")


def _on_site(found: re.Match[str]) -> str:
    names = {name: page for page, name in TOP.items()}
    return f"]({names.get(found[1], found[1])}"
