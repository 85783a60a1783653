"""Write the page of maps: what ``dcpbench recommend --map`` prints for the models whose profiles ship.

python -m tests.docs.maps > results/reference/h200/maps.md
"""

from __future__ import annotations

import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

from bench.cli import main
from bench.grid import folded

WIDTH = 100
_SOME = "--concurrency 1,4,16,64"
"""Where all that were measured would make a table too wide."""
MAPS = {
    "Qwen3-235B-A22B, tp 8": "--model qwen3-235b-a22b --tp 8 --gpu h200 --map",
    "The same beside a chunk of 2k": "--model qwen3-235b-a22b --tp 8 --gpu h200 --map --chunk 2k",
    "Qwen3-235B-A22B, tp 16": f"--model qwen3-235b-a22b --tp 16 --gpu h200 --map {_SOME}",
    "Qwen3-235B-A22B, tp 32": f"--model qwen3-235b-a22b --tp 32 --gpu h200 --map {_SOME}",
    "Qwen3-30B-A3B, tp 8": "--model qwen3-30b-a3b --tp 8 --gpu h200 --map",
    "Heads of 256, tp 8": f"--model gqa-32q-2kv-256 --tp 8 --gpu h200 --map {_SOME},256",
}
_BEGINNING = """# Which dcp, by context and concurrency

What [`dcpbench recommend --map`](../../../docs/tuning.md#1-ask) answers from [the profiles that ship](../README.md#profiles),
with the steps that vLLM's FlashInfer backend runs by itself, where those were measured. Nothing is measured for it; every mark
stands below its table.
"""


def page() -> str:
    """Return the page."""
    return "\n".join([_BEGINNING, *(_section(name, options) for name, options in MAPS.items())])


def _section(name: str, options: str) -> str:
    command = f"dcpbench recommend {options}"
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(shlex.split(command)[1:])
    if code:
        raise RuntimeError(f"{command} ended with {code}: {err.getvalue()}")
    lines = [f"$ {command}", *out.getvalue().splitlines()]
    shown = "\n".join(folded(line, WIDTH) for line in lines)
    return f"## {name}\n\n```console\n{shown}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(page())
