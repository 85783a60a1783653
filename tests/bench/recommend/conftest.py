"""What tests of ``recommend`` share: the command, asked in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cli import main

Run = Callable[..., tuple[int, str, str]]
"""Takes the words behind the command; returns its exit code, and what it wrote on stdout and stderr."""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        code = main(["recommend", *words])
        out, err = capsys.readouterr()
        return code, out, err

    return call
