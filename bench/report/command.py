"""The command that measures a case again."""

from __future__ import annotations

import shlex

from bench.record import Trial
from dcp_core.settings import ExchangeName, Settings
from dcp_core.shapes import PRESETS, ModelShape

_AXES = ("path", "kernel", "exchange")
_WARM = "exchange"
"""The shipped sweep whose policy times warm and several calls at once: no option of the command line does."""


def command_of(trial: Trial) -> str:
    """Return a command that measures a trial's case as it was measured, on a machine like its own.

    A model that is no preset is written out by its heads; one that cannot be stands as ``CONFIG.json``, to be filled in.
    """
    case, settings, policy = trial.case, trial.case.settings, trial.policy
    words = ["dcpbench", "--ranks", str(trial.ranks), "sweep", *([] if policy.cold else [_WARM])]
    words += ["--model", _model(case.shape), "--tp", str(case.layout.tp), "--dcp", str(case.layout.dcp)]
    words += ["--interleave", str(case.layout.interleave), "--batch", str(case.workload)]
    words += ["--path", settings.path, "--kernel", settings.kernel]
    # In fewer processes than it has ranks a group is simulated, and exchanges nothing, whatever it is asked for.
    if settings.exchange not in (ExchangeName.ALONE, ExchangeName.LOOPBACK):
        words += ["--exchange", settings.exchange]
    for name, value, _ in settings.differences(Settings()):
        if name not in _AXES:
            words += ["--set", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    words += ["--synthetic"] if case.synthetic else []
    words += [] if policy.graphs else ["--eager"]
    words += ["--trace"] if policy.trace else []
    return shlex.join([*words, "--precision", f"{policy.precision:g}"])


def _model(shape: ModelShape) -> str:
    if PRESETS.get(shape.name) == shape:
        return shape.name
    written = ModelShape(shape.q_heads, shape.kv_heads, shape.head_dim, shape.layers)
    text = f"q{shape.q_heads},kv{shape.kv_heads},d{shape.head_dim},l{shape.layers}"
    return text if written == shape else "CONFIG.json"
