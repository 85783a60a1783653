"""A decode-context-parallel attention core for grouped-query attention.

Names resolve lazily: nothing here imports torch until a name that needs it is touched.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcp_core.layout import DcpLayout, IllegalLayout
    from dcp_core.lse import Partial
    from dcp_core.settings import Case, IllegalSettings, Settings, Unsupported
    from dcp_core.shapes import ModelShape, Request, Workload

__version__ = "0.1.0"

_HOMES = {
    "Case": "settings",
    "DcpLayout": "layout",
    "IllegalLayout": "layout",
    "IllegalSettings": "settings",
    "ModelShape": "shapes",
    "Partial": "lse",
    "Request": "shapes",
    "Settings": "settings",
    "Unsupported": "settings",
    "Workload": "shapes",
}
__all__ = [
    "Case",
    "DcpLayout",
    "IllegalLayout",
    "IllegalSettings",
    "ModelShape",
    "Partial",
    "Request",
    "Settings",
    "Unsupported",
    "Workload",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dcp_core' has no attribute {name!r}")
    return getattr(import_module(f"dcp_core.{_HOMES[name]}"), name)
