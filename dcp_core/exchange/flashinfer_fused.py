"""FlashInfer's own exchanges for DCP, and why none serves here; there are no adapters to them. Floor 4."""

from __future__ import annotations

import torch

ALL_TO_ALL, REDUCE = "decode_cp_a2a_alltoall", "decode_cp_a2a_lse_reduce"


def refusals(device: torch.device) -> dict[str, str]:
    """Ask the machine what FlashInfer's exchanges need, and say of each why it does not serve; read from its version 0.7."""
    return {
        ALL_TO_ALL: _absence(ALL_TO_ALL, device)
        or _no_fabric(device)
        or "would run, and dcpbench has no adapter to it",
        REDUCE: _absence(REDUCE, device)
        or "returns no LSE, by which split merges and every result is checked; it needs NCCL's symmetric memory, and "
        "a newer torch than 2.11 to build",
    }


def _absence(name: str, device: torch.device) -> str:
    if device.type != "cuda":
        return f"needs CUDA devices, and this rank runs on {device.type}"
    try:
        import flashinfer.comm
    except ImportError:
        return "FlashInfer is not installed here"
    return "" if hasattr(flashinfer.comm, name) else "this version of FlashInfer lacks it"


def _no_fabric(device: torch.device) -> str:
    needs = "needs fabric memory, of a multi-node NVLink domain (MNNVL), and hangs without it"
    try:
        from flashinfer.comm.mnnvl import is_mnnvl_fabric_supported

        return "" if is_mnnvl_fabric_supported(device.index) else f"{needs}: {device} has none"
    except Exception as error:  # noqa: BLE001  whatever stops the question, of the driver or its bindings, is the answer
        return f"{needs}: that {device} has it could not be found out ({type(error).__name__}: {error})"
