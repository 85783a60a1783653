"""What tests of pictures share: searches are replayed on few batches, since what is drawn of many looks the same."""

from __future__ import annotations

import pytest

from bench.report import regret


@pytest.fixture(autouse=True)
def _few_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regret, "MAX_BATCHES", 2)
