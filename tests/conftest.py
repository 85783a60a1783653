"""What every test runs under, set before anything imports torch, triton or matplotlib."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence

import hypothesis
import pytest


def _cuda_devices() -> int:
    """Count CUDA devices through NVML, which, unlike CUDA itself, may be asked before worker processes are forked."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if sys.platform != "linux" or visible in ("", "-1"):
        return 0
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    present = int(pynvml.nvmlDeviceGetCount())
    pynvml.nvmlShutdown()
    return present if visible is None else min(present, len(visible.split(",")))


CUDA_DEVICES = _cuda_devices()

if not CUDA_DEVICES:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated, that is, at import
os.environ.setdefault("OMP_NUM_THREADS", "1")  # worker processes share the cores
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models under test have random weights: nothing may be fetched

# The same examples on every run; `--hypothesis-profile thorough` looks for new ones.
hypothesis.settings.register_profile("steady", derandomize=True, max_examples=50, deadline=None, database=None)
hypothesis.settings.register_profile("thorough", max_examples=2000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("steady")


NEEDING_MORE = ("gpu", "multi_gpu", "browser", "nodes", "launchers", "endurance")
"""Markers of tests that are deselected unless they are asked for."""
LEFT_OUT = pytest.StashKey[Counter[str]]()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count what is left out, by marker."""
    if items:
        counts = items[0].config.stash.setdefault(LEFT_OUT, Counter())
        counts.update(name for item in items for name in NEEDING_MORE if item.get_closest_marker(name))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say just above the closing line which tests did not run, and that no browser can be driven where that is so."""
    counts = config.stash.get(LEFT_OUT, Counter())
    if parts := [f"{counts[name]} {name}" for name in NEEDING_MORE if counts[name]]:
        lacking = "; there is no chromedriver here" if counts["browser"] and not shutil.which("chromedriver") else ""
        terminalreporter.write_line(f"Not run, deselected by marker: {', '.join(parts)}{lacking}.")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail, rather than skip, a test that was asked for by marker where its devices are missing."""
    needed = 2 if item.get_closest_marker("multi_gpu") else 1 if item.get_closest_marker("gpu") else 0
    if needed > CUDA_DEVICES:
        pytest.fail(f"needs {needed} CUDA device(s) and this machine shows {CUDA_DEVICES}", pytrace=False)


@pytest.fixture(scope="session")
def triton_device() -> str:
    """Return where Triton kernels run in this session: "cuda", or "cpu" under the interpreter."""
    return "cuda" if CUDA_DEVICES else "cpu"
