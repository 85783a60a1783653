"""FlashInfer's kernels that cannot serve decode context parallelism, by name. Floor 0: standard library only.

A rank's result is combined with those of its group through the LSE, so a kernel that returns none is of no use here,
however fast it is. Read from the sources of FlashInfer 0.7.
"""

from __future__ import annotations

REFUSED = (
    ("xqa", "XQA, FlashInfer's choice for trtllm-style decode on Hopper, returns no LSE"),
    ("trtllm_gen", "trtllm-gen is built for Blackwell; on Hopper XQA stands in for it, and returns no LSE"),
    ("cudnn_decode", "cuDNN's decode kernel returns no LSE; only cuDNN's graph API, a package of its own, would"),
    ("fmha_v2", "TensorRT-LLM's fmha_v2 prefill keeps its softmax statistics in a form of its own and returns no LSE"),
    ("cutile", "the cuTile decode kernel is built for Blackwell and returns no LSE"),
)
"""(name, reason) of each."""


def why_refused(word: str) -> str | None:
    """Return why what a user calls ``word`` (``XQA``, ``trtllm-gen``, ``cudnn``) is refused, or None if it is not."""
    name = word.lower().replace("-", "_")
    return next((why for known, why in REFUSED if known == name or (len(name) > 3 and known.startswith(name))), None)
