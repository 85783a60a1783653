"""The pages as a site ask nobody for anything."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.site import build_site

FETCHED = re.compile(
    r"""(?:\ssrc=["']?|<link\b[^>]*\shref=["']?|url\(["']?|@import\s+["']?)((?:https?:)?//[^"'\s>)]*)"""
)


def test_no_page_of_the_site_takes_a_script_a_style_a_font_or_a_picture_from_elsewhere(tmp_path: Path) -> None:
    site = build_site(tmp_path)
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert site / "docs" / "commands.html" in pages
    foreign = {(page.name, url) for page in pages for url in FETCHED.findall(page.read_text(encoding="utf-8"))}
    assert foreign == set()
