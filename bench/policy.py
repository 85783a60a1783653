"""How long and how carefully to measure. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """How long and how carefully to measure.

    Args:
        precision: half width of the median's 95 % interval, relative, at which sampling stops.
        min_samples, max_samples: bounds on repetitions, whatever the precision.
        min_warmup: calls before the first sample.
        max_seconds: of sampling one case.
        cold: flush the L2 cache before every repetition.
        graphs: on a GPU, time what can be captured as replays of a CUDA graph; else all as it is launched, eagerly.
        calls: timed one after another, a sample being their mean; more than one leaves no room to cool the cache between.
        seed: of inputs, page order and case order.
        trace: keep what runs when in steps that overlap; what is launched after that in the same process takes longer to launch.

    Raises:
        ValueError: naming the field that is out of its bounds.
    """

    precision: float = 0.01
    min_samples: int = 30
    max_samples: int = 300
    min_warmup: int = 10
    max_seconds: float = 5.0
    cold: bool = True
    seed: int = 0
    graphs: bool = True
    calls: int = 1
    trace: bool = False

    def __post_init__(self) -> None:
        if self.calls > 1 and self.cold:
            raise ValueError(f"{self.calls} calls one after another cannot be cold; set cold to false, or calls to 1")
        if not 0 < self.precision < 1:
            raise ValueError(f"precision is between 0 and 1, not {self.precision:g}")
        if not 0 < self.max_seconds < math.inf:
            raise ValueError(f"max_seconds is a positive number, not {self.max_seconds:g}")
        for name, (least, most) in _BOUNDS.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} is a whole number from {least} to {most}, not {getattr(self, name)}")
        if self.min_samples > self.max_samples:
            raise ValueError(f"min_samples {self.min_samples} exceeds max_samples {self.max_samples}")


_REPETITIONS = (1, 1_000_000)
_BOUNDS: Mapping[str, tuple[int, int]] = {
    "min_samples": _REPETITIONS,
    "max_samples": _REPETITIONS,
    "min_warmup": _REPETITIONS,
    "calls": (1, 1000),
    "seed": (0, (1 << 32) - 1),
}
"""Of a policy's whole numbers."""
