"""Shapes: what a user may type or hand over, and what each mistake is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_core.grammar import WorkloadError
from dcp_core.hf_config import ShapeError
from dcp_core.shapes import MAX_REQUESTS, PRESETS, DType, ModelShape, Request, Workload

LENGTHS = st.one_of(st.integers(1, 300), st.integers(1, 300).map(lambda thousands: thousands * 1024))
REQUESTS = st.builds(lambda new, context: Request(new, new + context), LENGTHS, st.one_of(st.just(0), LENGTHS))
WORKLOADS = st.lists(st.tuples(REQUESTS, st.integers(1, 3)), min_size=1, max_size=6).map(
    lambda runs: Workload(tuple(request for request, count in runs for _ in range(count)))
)


# --- The batch grammars ---------------------------------------------------------------------------------------------


@given(WORKLOADS)
def test_a_printed_workload_parses_to_an_equal_one(workload: Workload) -> None:
    assert Workload.parse(str(workload)) == workload


def size(tokens: int, short: bool) -> str:
    return f"{tokens // 1024}k" if short and tokens % 1024 == 0 else str(tokens)


@given(WORKLOADS, st.booleans())
def test_both_grammars_say_the_same(workload: Workload, short: bool) -> None:
    batch = "_".join(f"q{size(request.new, short)}s{size(request.total, short)}" for request in workload.requests)
    forward = ",".join(f"{size(request.new, short)}@{size(request.context, short)}" for request in workload.requests)
    assert Workload.parse(batch) == Workload.parse(forward) == Workload.parse(f"named={forward}") == workload


@pytest.mark.parametrize(
    ("text", "requests"),
    [
        ("q2k", [(2048, 2048)]),
        ("q1s1k", [(1, 1024)]),
        ("8q1s1k", [(1, 1024)] * 8),
        ("q4s1k", [(4, 1024)]),
        ("2q1k_32q1s1k", [(1024, 1024)] * 2 + [(1, 1024)] * 32),
        ("2q2k_32q1s1k", [(2048, 2048)] * 2 + [(1, 1024)] * 32),
        ("16q4s1k", [(4, 1024)] * 16),
        ("8q1s32k_q2ks32k", [(1, 32768)] * 8 + [(2048, 32768)]),
        ("q300s700", [(300, 700)]),
        ("32*1@8192", [(1, 8193)] * 32),
        ("8192", [(8192, 8192)]),
        ("4*2k", [(2048, 2048)] * 4),
        ("mix=8192,32*1@8192", [(8192, 8192)] + [(1, 8193)] * 32),
        ("quick_1.5-mix=8192", [(8192, 8192)]),
    ],
)
def test_examples_of_the_tools_whose_grammars_these_are(text: str, requests: list[tuple[int, int]]) -> None:
    assert Workload.parse(text) == Workload.of(*zip(*requests, strict=True))


@pytest.mark.parametrize(
    ("text", "character"),
    [
        ("", 1),
        ("q", 2),
        ("8q", 3),
        ("8q1s32k_2x", 10),
        ("q1__q1", 4),
        ("_q1", 1),
        ("q1_", 4),
        ("q1k1", 4),
        ("q1k_q1kk", 8),
        (" q1", 1),
        ("8q1s1k ", 7),
        ("-1q1", 1),
        ("Q2k", 1),
        ("8q1s1K", 6),
        ("q1.5k", 3),
        ("32*", 4),
        ("*4", 1),
        ("1,x", 3),
        ("4,,4", 3),
        ("mix=", 5),
        ("8q1s32k=q4", 9),
        ("mix=q4", 5),
        ("=8192", 1),
        ("a=b=8192", 3),
        ("a b=8192", 1),
        ("q4=8q1", 5),
        ("mix=4,5k@k", 10),
        ("٣q1", 1),
        ("q\uff11k", 2),
        ("8q1s٣", 5),
        ("q1s", 4),
        ("1*٣", 3),
        ("²*1", 1),
    ],
)
def test_a_batch_that_does_not_parse_points_at_the_character(text: str, character: int) -> None:
    with pytest.raises(WorkloadError, match=rf"^batch .*, character {character}: ."):
        Workload.parse(text)


@pytest.mark.parametrize("text", ["0q1", "q0", "8q0s1k", "q5s4", "q1s0", "0*1", "0@5", "q1s3000000000", "q2097152k"])
def test_a_batch_that_parses_but_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(WorkloadError, match="character 1: "):
        Workload.parse(text)


@pytest.mark.parametrize("count", [str(MAX_REQUESTS + 1), "1000000000", "9" * 12, "9" * 5000], ids=len)
@pytest.mark.parametrize("template", ["{}q1", "{}*1", "q4_{}q1", "1,{}*1"])
def test_a_count_that_no_batch_can_have_is_refused_before_it_costs_memory(template: str, count: str) -> None:
    with pytest.raises(WorkloadError, match=r"a batch has 1 to 65536|no batch can have"):
        Workload.parse(template.format(count))


def test_counts_of_several_segments_add_up() -> None:
    assert len(Workload.parse(f"{MAX_REQUESTS - 1}q1_q1")) == MAX_REQUESTS
    with pytest.raises(WorkloadError, match="character 9"):
        Workload.parse(f"{MAX_REQUESTS}q1_q1")


@given(st.text(alphabet="0123456789qsk_*@,=x٣ ", max_size=12))
def test_any_text_parses_or_is_refused_in_a_sentence(text: str) -> None:
    workload, sentence = None, ""
    try:
        workload = Workload.parse(text)
    except WorkloadError as error:
        sentence = str(error)
    assert (workload is None) == sentence.startswith(f"batch {text!r}, character ")
    assert workload is None or Workload.parse(str(workload)) == workload


@given(WORKLOADS)
def test_a_workload_knows_its_kind(workload: Workload) -> None:
    decodes = [new == 1 for new in workload.new_lens]
    assert workload.is_decode == all(decodes)
    assert workload.is_mixed == (any(decodes) and not all(decodes))
    assert workload.new_tokens == sum(workload.new_lens)
    lens = zip(workload.new_lens, workload.context_lens, workload.total_lens, strict=True)
    assert all(new + context == total for new, context, total in lens)
    assert len(workload) == len(workload.requests)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(WorkloadError, match="at least one request"):
        Workload(())


@pytest.mark.parametrize("lens", [(1.5, 2.5), (float("nan"), float("nan")), (1, "2"), (True, True), (None, 1)])
def test_a_request_of_broken_tokens_is_refused(lens: tuple[int, int]) -> None:
    with pytest.raises(WorkloadError, match="a request has whole numbers of tokens"):
        Request(*lens)


def test_a_batch_holds_requests_and_nothing_else() -> None:
    listed: Any = [Request(1, 5)]
    assert hash(Workload(listed)) == hash(Workload((Request(1, 5),)))
    for wrong in (("a",), None, 3, "q1", (1, 5)):
        with pytest.raises(WorkloadError, match=r"a batch is a tuple of Request\(new, total\), not"):
            Workload(wrong)  # type: ignore[arg-type]
    for wrong in (None, 3, b"q1"):
        with pytest.raises(WorkloadError, match="a batch is a text, as '8q1s32k', not"):
            Workload.parse(wrong)  # type: ignore[arg-type]


# --- Model shapes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers", "q_heads", "kv_heads", "head_dim"),
    [
        ("qwen3-235b-a22b", 94, 64, 4, 128),
        ("qwen3-30b-a3b", 48, 32, 4, 128),
        ("qwen3-32b", 64, 64, 8, 128),
        ("llama-3.1-70b", 80, 64, 8, 128),
        ("llama-3.1-405b", 126, 128, 8, 128),
        ("gpt-oss-120b", 36, 64, 8, 64),
    ],
)
def test_a_preset_is_found_whatever_the_case_of_its_name(
    name: str, layers: int, q_heads: int, kv_heads: int, head_dim: int
) -> None:
    expected = ModelShape(q_heads, kv_heads, head_dim, layers)
    assert ModelShape.preset(name) == ModelShape.preset(name.upper()) == ModelShape.parse(name.title()) == expected
    assert ModelShape.preset(name).name == name


def test_an_unknown_model_is_told_the_nearest() -> None:
    with pytest.raises(ShapeError, match=r"unknown model 'lama-3.1-70b'; did you mean 'llama-3.1-70b'\?; known: "):
        ModelShape.parse("lama-3.1-70b")


@given(st.integers(1, 8), st.integers(1, 16), st.sampled_from([64, 80, 128, 256]))
def test_a_shape_can_be_typed(kv_heads: int, group: int, head_dim: int) -> None:
    shape = ModelShape.parse(f"q{kv_heads * group},kv{kv_heads},d{head_dim}")
    assert (shape.q_heads, shape.kv_heads, shape.head_dim, shape.group) == (kv_heads * group, kv_heads, head_dim, group)


@pytest.mark.parametrize(
    "sizes",
    [
        (0, 1, 64),
        (8, -1, 64),
        (8, 3, 64),
        (8, 2, 0),
        (8, 2, 64, 0),
        (8.0, 2, 64),
        (True, 1, 64),
        (10**10, 1, 64),
        (8, 2, 1 << 17),
        (8, 2, 64, 1 << 17),
    ],
)
def test_a_shape_that_cannot_be_is_refused_at_birth(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        ModelShape(*sizes)


def test_what_is_no_name_is_refused_in_a_sentence() -> None:
    with pytest.raises(ShapeError, match="name of a model should be a text, not b'x'"):
        ModelShape(8, 2, 64, name=b"x")  # type: ignore[arg-type]
    for read in (ModelShape.preset, ModelShape.parse):
        for wrong in (None, 3, b"qwen3-32b"):
            with pytest.raises(ShapeError, match="a model's name is a text"):
                read(wrong)  # type: ignore[arg-type]


def test_a_name_plays_no_part_in_equality_and_a_cache_has_the_models_dtype_unless_told() -> None:
    named, plain = ModelShape(8, 2, 64, name="mine"), ModelShape(8, 2, 64, kv_dtype=DType.BFLOAT16)
    assert named == plain
    assert hash(named) == hash(plain)
    assert ModelShape(8, 2, 64, kv_dtype=DType.FLOAT8_E4M3FN).cache_dtype is DType.FLOAT8_E4M3FN


# --- config.json ----------------------------------------------------------------------------------------------------

QWEN3_235B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 4096,
    "max_position_embeddings": 40960,
    "model_type": "qwen3_moe",
    "num_attention_heads": 64,
    "num_experts": 128,
    "num_hidden_layers": 94,
    "num_key_value_heads": 4,
    "torch_dtype": "bfloat16",
}
LLAMA_31_70B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "model_type": "llama",
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "rope_scaling": {"factor": 8.0, "rope_type": "llama3"},
    "torch_dtype": "bfloat16",
}
MULTIMODAL = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "head_dim": 128,
        "hidden_size": 5376,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "num_attention_heads": 16, "num_hidden_layers": 27},
}
MULTI_HEAD = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "model_type": "llama",
    "torch_dtype": "float16",
}


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (QWEN3_235B, ModelShape(64, 4, 128, 94)),
        (LLAMA_31_70B, ModelShape(64, 8, 128, 80)),
        (MULTIMODAL, ModelShape(32, 16, 128, 62)),
        (MULTI_HEAD, ModelShape(32, 32, 128, 32, DType.FLOAT16)),
        ({**QWEN3_235B, "head_dim": None, "torch_dtype": None}, ModelShape(64, 4, 64, 94)),
        (
            {**MULTI_HEAD, "text_config": {"num_attention_heads": 16, "torch_dtype": None}},
            ModelShape(16, 16, 256, 32, DType.FLOAT16),
        ),
        ({**MULTI_HEAD, "torch_dtype": None, "dtype": "float32"}, ModelShape(32, 32, 128, 32, DType.FLOAT32)),
        ({**QWEN3_235B, "text_config": None}, ModelShape(64, 4, 128, 94)),
    ],
    ids=[
        "qwen3-235b",
        "no head_dim",
        "text_config",
        "no num_key_value_heads",
        "null head_dim",
        "null dtype inside",
        "dtype",
        "null text_config",
    ],
)
def test_a_real_config_is_read(config: dict[str, object], shape: ModelShape, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    assert ModelShape.from_hf_config(config) == shape
    assert ModelShape.from_hf_config(file) == ModelShape.from_hf_config(str(tmp_path)) == shape
    assert ModelShape.parse(str(file)) == shape


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1, 2]", "is an object, not list"),
        (b"{}", "num_attention_heads should be a positive whole number, not None"),
        (b'{"num_attention_heads": "8"}', "num_attention_heads should be a positive whole number, not '8'"),
        (b'{"num_attention_heads": true}', "num_attention_heads should be a positive whole number, not True"),
        (b'{"num_attention_heads": 8, "num_hidden_layers": 2}', "hidden_size should be"),
        (
            b'{"num_attention_heads": 8, "hidden_size": 100, "num_hidden_layers": 2}',
            "hidden_size 100 is no multiple of 8",
        ),
        (b'{"num_attention_heads": 8, "hidden_size": 512}', "num_hidden_layers should be"),
        (
            b'{"num_attention_heads": 8, "hidden_size": 512, "num_hidden_layers": 2, "num_key_value_heads": 3}',
            "kv_heads must divide q_heads",
        ),
        (
            b'{"num_attention_heads": 8, "hidden_size": 512, "num_hidden_layers": 2, "dtype": "float61"}',
            "unknown dtype 'float61'; did you mean 'float16'",
        ),
        (b'{"num_attention_heads": 8, "kv_lora_rank": 512}', "multi-head latent attention (kv_lora_rank 512)"),
        (
            b'{"num_attention_heads": 8, "hidden_size": 512, "num_hidden_layers": 2, "layer_types": ["full_attention"]}',
            "layer_types should be a list with a word for each of 2 layers",
        ),
        (
            b'{"num_attention_heads": 8, "hidden_size": 512, "num_hidden_layers": 1, "layer_types": ["mamba"]}',
            "layer_types has no attention",
        ),
    ],
)
def test_a_bad_config_is_named_with_its_field(content: bytes, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(ShapeError) as caught:
        ModelShape.from_hf_config(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert complaint in str(caught.value)


def test_of_a_hybrid_model_the_layers_that_cache_keys_and_values_count() -> None:
    config: dict[str, object] = {"num_attention_heads": 8, "hidden_size": 512, "num_hidden_layers": 8}
    plain = ModelShape.from_hf_config({**config, "kv_lora_rank": None})
    assert plain.layers == 8
    hybrid = ["linear_attention", "full_attention", "mamba", "sliding_attention"] * 2
    assert ModelShape.from_hf_config({**config, "layer_types": hybrid}) == replace(plain, layers=4)
    predicting = [*hybrid, "full_attention"]
    assert ModelShape.from_hf_config({**config, "layer_types": predicting}) == replace(plain, layers=4)


def test_a_config_that_is_neither_a_path_nor_a_mapping_is_refused() -> None:
    for wrong in (None, 3):
        with pytest.raises(ShapeError, match="a config is a path or a mapping, not"):
            ModelShape.from_hf_config(wrong)  # type: ignore[arg-type]


def test_a_device_in_place_of_a_config_is_told_as_such() -> None:
    with pytest.raises(ShapeError, match=r"^/dev/null: no regular file; give a preset's name or a config\.json$"):
        ModelShape.from_hf_config("/dev/null")


def test_a_config_that_is_not_there_or_far_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"absent\.json: No such file"):
        ModelShape.parse(str(tmp_path / "absent.json"))
    with pytest.raises(ShapeError, match=r"config\.json: No such file"):
        ModelShape.from_hf_config(tmp_path)
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ShapeError, match="larger than 16 MiB"):
        ModelShape.from_hf_config(tmp_path)


def test_every_preset_can_be_typed_and_names_itself() -> None:
    for name, shape in PRESETS.items():
        assert ModelShape.parse(name) is shape
        assert shape.name == name


@pytest.mark.parametrize("text", ["q64,kv4", "q64,kv4,d", "q64,d128", "q64,kv4,d128,x"])
def test_heads_that_are_not_all_given_are_told_how_to_be_written(text: str) -> None:
    with pytest.raises(ShapeError, match="is written as q64,kv4,d128"):
        ModelShape.parse(text)
