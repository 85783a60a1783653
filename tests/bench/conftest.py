"""What tests of the program share: a stand-in for its supervisor."""

from __future__ import annotations

import pytest

import bench.environment
import bench.supervisor
from tests.bench.made_up import CPU
from tests.bench.stand_in import Scripted


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """Return the stand-in, in place, on a machine without a GPU."""
    stand_in = Scripted()
    monkeypatch.setattr(bench.supervisor, "Supervisor", stand_in)
    monkeypatch.setattr(bench.environment, "devices", lambda: ())
    monkeypatch.setattr(bench.environment, "fingerprint", lambda on_gpu=None: CPU)
    return stand_in
