"""Compile the direct exchange's kernels for an H100, which needs none, and print as JSON what they consist of.

A program of its own, since a session without a GPU interprets every kernel that it imports.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dcp_core.triton_ops import direct, rows, words

H100 = GPUTarget("cuda", 90, 32)
POINTERS = {
    **dict.fromkeys(("q", "out", "own", "k", "v", "result"), "*bf16"),
    **dict.fromkeys(("lses", "own_lses", "earlier", "total_lses"), "*fp32"),
    **dict.fromkeys(("base_to_natural", "own_to_natural", "scale"), "fp32"),
    **dict.fromkeys(("rooms", "turns", "loss", "told"), "*i64"),
    "places": "*i32",
}
CONSTANTS = {
    "RANKS": 2,
    "KV_HEADS": 1,
    "GROUP": 8,
    "FOLD": 1,
    "PLACED": False,
    "EARLY": True,
    "HEAD_DIM": 128,
    "COLUMNS": 128,
}
INSTRUCTION = re.compile(r"^\s*(?:@\S+ )?((?:ld|st)\.(?:volatile\.)?global\S*)", re.MULTILINE)


def instructions(kernel: triton.JITFunction, tile: direct.Tile, **more: object) -> dict[str, int]:
    """Count a compiled kernel's loads and stores by width."""
    constants = {**CONSTANTS, "HEIGHT": tile.rows, **more}
    names = [param.name for param in kernel.params]
    types = {
        param.name: "constexpr" if param.is_constexpr else POINTERS.get(param.name, param.annotation_type or "i32")
        for param in kernel.params
    }
    source = ASTSource(
        kernel, types, {(names.index(name),): value for name, value in constants.items() if name in names}
    )
    compiled = triton.compile(source, target=H100, options={"num_warps": tile.warps})
    return dict(Counter(INSTRUCTION.findall(compiled.asm["ptx"])))


def specialised(kernel: triton.JITFunction) -> list[str]:
    return [param.name for param in kernel.params if not (param.is_constexpr or param.do_not_specialize)]


found = {
    kernel.__name__: {
        "specialised": specialised(kernel),
        "aligned": instructions(kernel, direct.LARGE, ALIGNED=True),
        "not aligned": instructions(kernel, direct.LARGE, ALIGNED=False),
    }
    for kernel in (rows.gather_rows, rows.combine_rows)
} | {
    kernel.__name__: {
        "specialised": specialised(kernel),
        "words": instructions(kernel, direct.SMALL, SEATS=2),
    }
    for kernel in (words.gather_words, words.combine_words)
}
json.dump(found, sys.stdout)
