"""What a Hugging Face ``config.json`` says of a model's attention. Floor 0: standard library only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any

MAX_CONFIG_BYTES = 16 << 20
"""A config.json beyond this size is not one."""
_CACHING_LAYERS = ("full_attention", "sliding_attention", "chunked_attention", "attention")
"""What transformers' ``layer_types`` calls layers with a KV cache; the rest are linear attention, state spaces, …"""


class ShapeError(ValueError):
    """A model shape, or the file it should come from, that cannot be used."""


def read_config(path: Path) -> tuple[str, Mapping[str, object]]:
    """Read a ``config.json``, or the one in a folder.

    Returns:
        The file's path, and its content.

    Raises:
        ShapeError: if there is none, or it is no JSON object.
    """
    file = path
    try:
        file = path / "config.json" if path.is_dir() else path
        found = file.stat()
        if not S_ISREG(found.st_mode):
            raise ShapeError(f"{file}: no regular file; give a preset's name or a config.json")
        if found.st_size > MAX_CONFIG_BYTES:
            raise ShapeError(f"{file}: larger than {MAX_CONFIG_BYTES >> 20} MiB, so it is no model's config.json")
        config = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_once_each)
    except ShapeError:
        raise
    except OSError as error:
        raise ShapeError(f"{file}: {error.strerror or error}; give a preset's name or a config.json") from None
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of a number too long, of a NUL in the path
        raise ShapeError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise ShapeError(f"{file}: a model's config.json is an object, not {type(config).__name__}")
    return str(file), config


def _once_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object of JSON; of a key given twice nobody could tell which counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"key {twice[:40]!r} stands twice in one object")
    return found


def shape_fields(config: Mapping[str, object]) -> dict[str, Any]:
    """Return the fields of a ``ModelShape`` that a config gives; those it leaves to a default are left out.

    Raises:
        ShapeError: naming the field that is missing or wrong; for multi-head latent attention.
    """
    inner = config.get("text_config")
    inner = inner if isinstance(inner, Mapping) else {}
    text = {**config, **inner}

    def whole(field: str, default: int | None = None) -> int:
        value = text.get(field)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ShapeError(f"{field} should be a positive whole number, not {value!r}")
        return value

    if (rank := text.get("kv_lora_rank")) is not None:
        raise ShapeError(
            f"a model of multi-head latent attention (kv_lora_rank {rank!r}), which caches no KV heads; "
            f"give one of grouped-query attention"
        )
    q_heads = whole("num_attention_heads")
    head_dim = text.get("head_dim")
    if head_dim is None and whole("hidden_size") % q_heads:
        raise ShapeError(
            f"hidden_size {text['hidden_size']} is no multiple of {q_heads} attention heads; give head_dim too"
        )
    fields: dict[str, Any] = {
        "q_heads": q_heads,
        "kv_heads": whole("num_key_value_heads", q_heads),
        "head_dim": whole("head_dim") if head_dim is not None else whole("hidden_size") // q_heads,
        "layers": _attention_layers(whole("num_hidden_layers"), text.get("layer_types")),
        "name": str(text.get("_name_or_path") or text.get("model_type") or "")[:100],
    }
    # A null inside says nothing, and leaves it to the outer one.
    if dtypes := [part[key] for part in (inner, config) for key in ("dtype", "torch_dtype") if part.get(key)]:
        fields["dtype"] = dtypes[0]
    return fields


def _attention_layers(layers: int, types: object) -> int:
    """Count the layers that cache keys and values: all, unless ``layer_types`` tells them apart."""
    if types is None:
        return layers
    # Some list the layers of multi-token prediction too, beyond num_hidden_layers.
    if not isinstance(types, list) or len(types) < layers:
        raise ShapeError(f"layer_types should be a list with a word for each of {layers} layers")
    count = sum(kind in _CACHING_LAYERS for kind in types[:layers])
    if not count:
        raise ShapeError(f"layer_types has no attention that caches keys and values: {', '.join(_CACHING_LAYERS)}")
    return count
