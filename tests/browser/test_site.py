"""The pages as a site in a real browser, from a folder, the network off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.docs.site import build_site

pytestmark = pytest.mark.browser


def test_the_site_is_searched_without_a_server_and_the_browser_complains_of_nothing(
    browser: Any, tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get((build_site(tmp_path) / "docs" / "method.html").as_uri())
    field = browser.find_element(By.CSS_SELECTOR, ".md-search__input")
    field.click()
    field.send_keys("interleaved_causal_mask")
    found = WebDriverWait(browser, 20).until(
        lambda page: page.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
    )
    assert "docs/api-reference.html" in found[0].get_attribute("href")
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
