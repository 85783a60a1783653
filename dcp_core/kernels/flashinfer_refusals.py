"""What FlashInfer's kernels cannot do, said before they are asked to. Floor 3.

The bounds are those of FlashInfer 0.7, read from its sources: the dispatch over head groups of its CUDA-core decode kernel,
the head dims that its Hopper kernels instantiate, the dtypes each takes.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from dcp_core.kernels.base import Masking, PassKind, PassSpec
from dcp_core.settings import KernelName

HEAD_DIMS = (64, 128, 256)
CUDA_CORE_GROUPS = (1, 2, 3, 4, 6, 8, 16)
QUERY_DTYPES = (torch.bfloat16, torch.float16)


def refusal(name: KernelName, spec: PassSpec, device: torch.device) -> str | None:
    """Say in a sentence why a kernel cannot run a pass on a device, or None; nothing is run, and nothing compiled.

    What no machine could run is named first.
    """
    return _of_shape(name, spec) or _of_masking(name, spec) or _of_dtypes(name, spec) or _of_machine(name, spec, device)


def _of_shape(name: KernelName, spec: PassSpec) -> str | None:
    if name is KernelName.CUDA_CORE and spec.kind is not PassKind.DECODE:
        return f"cuda_core decodes one query per request over pages; a {spec.kind} pass needs fa2 or fa3"
    if name is KernelName.PERSISTENT and spec.kind is PassKind.RAGGED:
        return "persistent reads pages of the cache; a ragged pass over new tokens needs fa2 or fa3"
    if name is KernelName.PERSISTENT and spec.replayable:
        return "persistent plans for one batch, and a graph of it serves no other; fa2 and fa3 can be replayable"
    if name is KernelName.CUDA_CORE and spec.fixed_split_size:
        return "cuda_core chooses how it splits KV itself; a fixed split size needs fa2"
    if spec.head_dim not in HEAD_DIMS:
        return f"{name} is built for head dims {_listed(HEAD_DIMS)}, not {spec.head_dim}"
    if spec.q_heads % spec.kv_heads:
        return f"{spec.q_heads} query heads cannot share {spec.kv_heads} KV heads: the one must divide the other"
    if name is KernelName.CUDA_CORE and spec.group not in CUDA_CORE_GROUPS:
        groups = _listed(CUDA_CORE_GROUPS)
        return f"cuda_core takes head groups of {groups} after the gather, not {spec.group}; fa2 takes any"
    return None


def _of_masking(name: KernelName, spec: PassSpec) -> str | None:
    if not spec.masking.custom:
        return None
    if spec.kind is PassKind.DECODE:
        return f"the decode kernels take no custom mask; a {spec.masking} mask needs a paged pass"
    if name in (KernelName.FA3, KernelName.PERSISTENT):
        return f"{name} takes no custom mask, and {spec.masking} is one; fa2 does"
    if spec.masking is Masking.COMPUTED and name is not KernelName.FA2:
        return f"a computed mask is a variant of fa2's kernel, and must be asked for by that name, not {name}"
    return None


def _of_dtypes(name: KernelName, spec: PassSpec) -> str | None:
    query, cache = (str(dtype).removeprefix("torch.") for dtype in (spec.dtype, spec.kv_dtype))
    if spec.dtype not in QUERY_DTYPES:
        return f"{name} takes queries of bfloat16 or float16, not {query}"
    if spec.kv_dtype == spec.dtype:
        return None
    if spec.kv_dtype != torch.float8_e4m3fn:
        return f"{name} takes a cache of the queries' dtype or float8_e4m3fn, not {cache} under {query} queries"
    if name is KernelName.PERSISTENT:
        return f"persistent was not tried with a {cache} cache under {query} queries; fa2 takes these"
    if name is KernelName.FA3:
        return f"fa3 reads a float8_e4m3fn cache only with float8 queries, not {query} ones; fa2 takes these"
    return None


def _of_machine(name: KernelName, spec: PassSpec, device: torch.device) -> str | None:
    if device.type != "cuda" or not torch.cuda.is_available():
        return (
            f"{name} needs a CUDA device, not {device.type if device.type != 'cuda' else 'a machine that shows none'}"
        )
    if find_spec("flashinfer") is None:
        return f"{name} is FlashInfer's, which is not installed here: pip install flashinfer-python"
    major, minor = torch.cuda.get_device_capability(device)
    if name is KernelName.FA3 and (major, minor) != (9, 0):
        return f"fa3 is built for compute capability 9.0 (Hopper); this device has {major}.{minor}"
    if major < 8:
        return f"{name} needs compute capability 8.0 for {spec.dtype}; this device has {major}.{minor}"
    return None


def _listed(choices: tuple[int, ...]) -> str:
    return f"{', '.join(str(choice) for choice in choices[:-1])} and {choices[-1]}"
