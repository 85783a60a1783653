"""The pages as a site, built as ``make docs`` builds it."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build_site(folder: Path) -> Path:
    """Build the site inside a folder, and return where its pages are."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    pages, site = folder / "pages", folder / "site"
    shutil.copytree(ROOT / "docs", pages / "docs")
    shutil.copytree(ROOT / "results" / "reference", pages / "results" / "reference")
    for page in ROOT.glob("*.md"):
        shutil.copy(page, pages)
    build(load_config(str(ROOT / "mkdocs.yml"), docs_dir=str(pages), site_dir=str(site)))
    return site
