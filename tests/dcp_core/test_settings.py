"""Settings and cases: what goes together, what is the same case, and what a file may hold."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dcp_core.layout import DcpLayout
from dcp_core.settings import (
    Batching,
    Case,
    DecodeWrapper,
    ExchangeName,
    IllegalSettings,
    IndexDevice,
    KernelName,
    KvLayout,
    MaskForm,
    PathName,
    Settings,
    canonical,
    check_name,
    coerce,
)
from dcp_core.shapes import DType, ModelShape, Request, Workload

SHAPES = st.builds(
    lambda kv, group, head_dim, layers, dtype, kv_dtype: ModelShape(kv * group, kv, head_dim, layers, dtype, kv_dtype),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([4, 8]),
    st.sampled_from([64, 128, 256]),
    st.integers(1, 3),
    st.sampled_from(DType),
    st.sampled_from([None, *DType]),
)
LAYOUTS = st.builds(
    lambda dcp, copies, interleave: DcpLayout(dcp * copies, dcp, interleave),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2, 16]),
)
WORKLOADS = st.sampled_from(
    [Workload.parse(text) for text in ("q1s9", "2q1s1k", "q4s9", "q7", "3q1s4_q5s8", "q1_2q1s8_q6")]
)


RAGGED_KERNELS = [name for name in KernelName if name is not KernelName.PERSISTENT]


@st.composite
def any_settings(draw: st.DrawFn, layout: DcpLayout | None = None) -> Settings:
    """Draw settings that may stand; with a layout, mostly such as may stand with it."""
    alone = layout is not None and layout.dcp == 1
    path = draw(
        st.sampled_from(PathName if alone or layout is None else [name for name in PathName if name is not PathName.TP])
    )
    exchanges = (
        [ExchangeName.ALONE]
        if alone or path is PathName.TP
        else [name for name in ExchangeName if name.value != "alone"]
    )
    maskless = (KernelName.FA3, KernelName.PERSISTENT)
    kernels = st.sampled_from([kernel for kernel in KernelName if path is not PathName.MASK or kernel not in maskless])
    replayable, disable_split_kv = draw(st.booleans()), draw(st.booleans())
    return Settings(
        path=path,
        kernel=draw(kernels),
        new_kernel=draw(st.none() | st.sampled_from(RAGGED_KERNELS)),
        decode_kernel=draw(st.none() | kernels),
        exchange=draw(st.sampled_from(exchanges)),
        mask_form=draw(st.sampled_from(MaskForm)),
        batching=draw(st.sampled_from(Batching)),
        overlap=draw(st.booleans()),
        page_size=draw(st.sampled_from([16, 32])),
        kv_layout=draw(st.sampled_from(KvLayout)),
        index_device=draw(st.sampled_from(IndexDevice)),
        replayable=replayable,
        decode_wrapper=draw(st.sampled_from(DecodeWrapper)),
        disable_split_kv=disable_split_kv,
        fixed_split_size=None if replayable or disable_split_kv else draw(st.sampled_from([None, 4])),
        skip_empty_context=draw(st.booleans()),
        fold_limit=draw(st.sampled_from([4, 1 << 16])),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape, layout, workload = draw(SHAPES), draw(LAYOUTS), draw(WORKLOADS)
    settings = draw(any_settings(layout))
    assume(shape.q_heads % layout.tp == 0)
    assume(settings.path is not PathName.DECODE or workload.is_decode)
    assume(settings.path is not PathName.FOLD or (layout.interleave == 1 and not settings.replayable))
    assume(not (settings.overlap and settings.batching is Batching.SHARED and workload.is_mixed))
    joined_fold = settings.path is PathName.FOLD and settings.batching is Batching.JOINED
    assume(not joined_fold or max(workload.new_lens) <= settings.fold_limit)
    return Case(shape, layout, workload, settings)


def case_of(layout: DcpLayout, workload: str, **settings: object) -> Case:
    return Case(ModelShape(32, 2, 64), layout, Workload.parse(workload), Settings(**settings))  # type: ignore[arg-type]


# --- JSON and the key -----------------------------------------------------------------------------------------------


@given(cases())
def test_a_case_survives_json(case: Case) -> None:
    again = Case.from_json(json.loads(json.dumps(case.to_json())))
    assert again == case
    assert again.key == case.key
    assert again.shape.name == case.shape.name


@given(any_settings())
def test_settings_survive_json(settings: Settings) -> None:
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize("wrong", [None, 3, "split", {1: 2}, {None: 2}])
def test_what_is_no_mapping_of_settings_is_refused(wrong: Any) -> None:
    with pytest.raises(IllegalSettings, match=r"settings are a mapping of names to values|unknown setting"):
        Settings.from_json(wrong)


@given(cases(), st.text(max_size=20))
def test_a_models_name_plays_no_part_in_the_key(case: Case, name: str) -> None:
    assert replace(case, shape=replace(case.shape, name=name)).key == case.key


@given(cases(), cases())
def test_cases_have_the_same_key_only_if_they_are_equal(one: Case, other: Case) -> None:
    assert (one.key == other.key) == (one == other)


OTHER_VALUES: dict[str, object] = {
    "path": "mask",
    "kernel": "fa2",
    "new_kernel": "fa2",
    "decode_kernel": "fa2",
    "exchange": "a2a",
    "mask_form": "bool",
    "batching": "joined",
    "page_size": 32,
    "kv_layout": "HND",
    "index_device": "device",
    "replayable": True,
    "skip_empty_context": False,
    "fold_limit": 4,
    "overlap": True,
    "decode_wrapper": "prefill",
    "fixed_split_size": 4,
    "disable_split_kv": True,
}


@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
def test_every_setting_has_its_part_in_the_key(name: str) -> None:
    plain: dict[str, Any] = {"path": "split", "kernel": "reference", "exchange": "ag_rs", "mask_form": "packed"}
    layout = DcpLayout(4, 2)
    one, other = case_of(layout, "q4s9", **plain), case_of(layout, "q4s9", **(plain | {name: OTHER_VALUES[name]}))
    assert [difference[0] for difference in one.settings.differences(other.settings)] == [name]
    assert one.key != other.key


def test_shape_layout_and_workload_have_their_part_in_the_key() -> None:
    case = case_of(DcpLayout(4, 2), "q4s9", path="split", exchange="ag_rs")
    others = [
        replace(case, shape=replace(case.shape, **change))
        for change in ({"q_heads": 64}, {"kv_heads": 4}, {"head_dim": 128}, {"layers": 2}, {"dtype": "float16"})
    ]
    others += [
        replace(case, shape=replace(case.shape, kv_dtype=DType.FLOAT8_E4M3FN)),
        replace(case, layout=DcpLayout(8, 2)),
        replace(case, layout=DcpLayout(4, 4)),
        replace(case, layout=DcpLayout(4, 2, 2)),
        replace(case, workload=Workload.parse("q4s10")),
        replace(case, workload=Workload.parse("2q4s9")),
    ]
    assert len({case.key, *(other.key for other in others)}) == len(others) + 1
    assert all(len(other.key) == 16 and int(other.key, 16) >= 0 for other in others)


def test_a_key_is_the_same_on_every_machine_and_day() -> None:
    case = case_of(
        DcpLayout(4, 2), "q4s9", path="split", kernel="fa2", exchange="ag_rs", mask_form="packed", page_size=16
    )
    assert case.to_json()["settings"]["kernel"] == "fa2"
    assert case.key == Case.from_json(dict(reversed(case.to_json().items()))).key


@pytest.mark.parametrize("part", ["shape", "layout", "workload", "settings"])
@pytest.mark.parametrize("value", [None, 7, [], {"nonsense": 1}, "?"], ids=repr)
def test_a_file_that_holds_half_a_case_is_refused(part: str, value: object) -> None:
    data = case_of(DcpLayout(4, 2), "q4s9", path="split", exchange="ag_rs").to_json()
    with pytest.raises(
        ValueError, match=r"a case needs|unknown setting|are a mapping|is a text|batch '\?', character 1"
    ):
        Case.from_json(data | {part: value})
    del data[part]
    with pytest.raises(IllegalSettings, match=rf"a case needs shape, layout, workload and settings.*{part}"):
        Case.from_json(data)


# --- Canonical settings ---------------------------------------------------------------------------------------------


@given(cases())
def test_canonical_settings_are_settled_at_once_and_stay_legal(case: Case) -> None:
    settled = canonical(case.settings, case.layout, case.workload)
    assert canonical(settled, case.layout, case.workload) == settled
    assert replace(case, settings=settled).settings == settled


def split_by(case: Case) -> list[Request]:
    """Return the requests of a case that path split serves."""
    settings, requests = case.settings, case.workload.requests
    apart = case.workload.is_mixed and settings.batching is not Batching.JOINED
    match settings.path:
        case PathName.SPLIT:
            return [request for request in requests if request.new > 1 or not apart]
        case PathName.FOLD:
            return [request for request in requests if request.new > settings.fold_limit]
        case _:
            return []


@given(cases())
def test_canonical_settings_run_the_very_same_step(case: Case) -> None:
    before, after = case.settings, canonical(case.settings, case.layout, case.workload)
    step = ["path", "exchange", "page_size", "kv_layout", "index_device", "replayable"]
    if case.settings.path is PathName.MASK:
        step.append("mask_form")
    apart = case.workload.is_mixed and before.batching is not Batching.JOINED
    timed = before.exchange is not ExchangeName.LOOPBACK  # a simulation does not time gather and combine
    by_split = split_by(case)
    if by_split:
        step.append("kernel_for_new")
        whole = before.batching is Batching.SHARED or before.replayable  # then nothing is left out
        if timed and not whole and not any(request.context for request in by_split):
            step.append("skip_empty_context")
    leaves_out = before.skip_empty_context and not any(request.context for request in by_split)
    if by_split and case.layout.dcp > 1 and timed and (whole or not leaves_out):
        step.append("overlap")
    if case.settings.path is PathName.FOLD and by_split:
        step.append("fold_limit")
    decoding = before.path is PathName.DECODE or (before.path is PathName.TP and case.workload.is_decode)
    decodes = decoding or (apart and any(request.new == 1 for request in case.workload.requests))
    if apart or decoding:
        step.append("kernel_for_decode")
    if decodes:
        step.append("decode_wrapper")
    if KernelName.FA2 in ({before.kernel_for_decode} if decodes else set()) | (set() if decoding else {before.kernel}):
        step += ["fixed_split_size", "disable_split_kv"]
    if not decoding:
        step.append("kernel")
    if case.workload.is_mixed and (before.batching is not Batching.SHARED or (timed and case.layout.dcp > 1)):
        step.append("batching")
    assert {name: getattr(after, name) for name in step} == {name: getattr(before, name) for name in step}


@given(cases(), st.sampled_from(RAGGED_KERNELS), st.sampled_from(MaskForm), st.booleans())
def test_what_plays_no_part_makes_no_other_case(case: Case, kernel: KernelName, form: MaskForm, skip: bool) -> None:
    changed = case.settings
    if not split_by(case):
        changed = replace(changed, new_kernel=kernel, skip_empty_context=skip, overlap=skip)
    if changed.path is not PathName.MASK:
        changed = replace(changed, mask_form=form)
    if KernelName.FA2 not in (changed.kernel, changed.decode_kernel):
        changed = replace(changed, fixed_split_size=None, disable_split_kv=skip)
    if not case.workload.is_mixed:
        changed = replace(changed, batching=Batching.JOINED)
        if changed.path not in (PathName.DECODE, PathName.TP):
            changed = replace(changed, decode_kernel=kernel)
    assert canonical(changed, case.layout, case.workload) == canonical(case.settings, case.layout, case.workload)


# --- What cannot go together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "workload", "settings", "complaint"),
    [
        (
            DcpLayout(4, 2),
            "q4",
            {"path": "tp", "exchange": "alone"},
            "path tp is the dcp 1 baseline, asked for with dcp 2; choose decode, split",
        ),
        (DcpLayout(4, 2), "q1_q4", {"path": "decode", "exchange": "a2a"}, "one new token per request, the batch has 4"),
        (DcpLayout(4, 2, 2), "q4", {"path": "fold", "exchange": "a2a"}, "path fold needs interleave 1, not 2"),
        (
            DcpLayout(4, 2),
            "q4_q1_q5",
            {"path": "split", "exchange": "a2a", "batching": "shared"},
            "batching shared takes a batch whose decodes stand together, and so its longer requests, not q4_q1_q5",
        ),
        (
            DcpLayout(4, 2),
            "q1_q4_q1",
            {"path": "split", "exchange": "a2a", "replayable": True},
            "a replayable batch has its decodes together",
        ),
        (
            DcpLayout(4, 2),
            "q1_q4_q512",
            {"path": "fold", "exchange": "a2a", "batching": "joined", "fold_limit": 64},
            "batching joined runs one pass for all, so it folds all: leave fold_limit",
        ),
        (DcpLayout(4, 2), "q4", {"path": "split", "exchange": "alone"}, "dcp 2 needs an exchange between its ranks"),
        (DcpLayout(4), "q4", {"path": "split", "exchange": "ag_rs"}, "dcp 1 has nobody to exchange with"),
        (
            DcpLayout(4, 2, 3),
            "q4",
            {"path": "split", "exchange": "a2a"},
            "interleave 3 must divide the page size 16; .* is [24]",
        ),
        (
            DcpLayout(4, 2, 64),
            "q4",
            {"path": "split", "exchange": "a2a"},
            "interleave 64 must divide .* nearest that does is 16",
        ),
    ],
)
def test_settings_that_cannot_serve_a_layout_or_batch_say_why(
    layout: DcpLayout, workload: str, settings: dict[str, object], complaint: str
) -> None:
    with pytest.raises(IllegalSettings, match=complaint):
        case_of(layout, workload, **settings)


def test_at_dcp_1_an_interleave_stands_in_nobodys_way() -> None:
    for path in ("tp", "split", "mask", "fold"):
        assert case_of(DcpLayout(4, 1, 48), "q4", path=path, exchange="alone").layout.interleave == 48


def test_settings_that_cannot_go_together_say_why() -> None:
    with pytest.raises(IllegalSettings, match="fa3 takes no custom mask; run path mask with kernel fa2"):
        Settings(path=PathName.MASK, kernel=KernelName.FA3, exchange=ExchangeName.A2A)
    with pytest.raises(IllegalSettings, match="its exchange is alone, not a2a"):
        Settings(path=PathName.TP, exchange=ExchangeName.A2A)


def test_a_layout_that_no_server_would_start_makes_a_synthetic_case() -> None:
    shape, workload = ModelShape.preset("qwen3-235b-a22b"), Workload.parse("q4s9")
    settings = Settings(path=PathName.SPLIT, exchange=ExchangeName.LOOPBACK)
    assert not Case(shape, DcpLayout(8, 2), workload, settings).synthetic
    assert Case(shape, DcpLayout(8, 4), workload, settings).synthetic
    assert Case(shape, DcpLayout(8, 2), workload, settings).geometry == "16x1x128"


# --- What a user types ----------------------------------------------------------------------------------------------


@given(any_settings())
def test_a_setting_reads_back_what_it_prints(settings: Settings) -> None:
    for name, value in settings.to_json().items():
        typed = "" if value is None else str(value)
        assert coerce(name, typed) == coerce(name, value) == getattr(settings, name)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("path", "fodl", "unknown path 'fodl'; did you mean 'fold'?; known: tp, decode, split, mask, fold"),
        ("kernel", "fa4", "unknown kernel 'fa4'; did you mean 'fa"),
        ("exchange", "", "unknown exchange ''; known: alone"),
        ("path", None, "path needs a value"),
        ("page_size", "0", "page_size is a whole number from 1 to 65536, not '0'"),
        ("page_size", "65537", "page_size is a whole number from 1 to 65536, not '65537'"),
        ("page_size", "1e2", "not '1e2'"),
        ("page_size", "-16", "not '-16'"),
        ("page_size", "١٦", "not '١٦'"),
        ("page_size", 16.0, "not 16.0"),
        ("page_size", True, "not True"),
        ("replayable", "yes", "replayable is true or false, not 'yes'"),
        ("replayable", 2, "replayable is true or false, not 2"),
        ("kv_layout", "nhd", "unknown kv_layout 'nhd'"),
    ],
)
def test_a_value_that_cannot_be_is_told_what_would_be_right(name: str, value: object, complaint: str) -> None:
    with pytest.raises(IllegalSettings) as caught:
        coerce(name, value)
    assert complaint in str(caught.value)
    with pytest.raises(IllegalSettings):
        Settings.from_json({name: value})


@pytest.mark.parametrize("name", ["kernel", "new_kernel", "decode_kernel"])
@pytest.mark.parametrize(
    "word", ["xqa", "XQA", "trtllm_gen", "trtllm-gen", "cudnn", "cudnn_decode", "fmha_v2", "cutile"]
)
def test_a_kernel_that_returns_no_lse_is_refused_by_name_with_the_reason(name: str, word: str) -> None:
    with pytest.raises(IllegalSettings, match=rf"^{name} '{word}' is refused: .* LSE.*; known: reference, fa2"):
        coerce(name, word)


def test_a_case_of_something_else_is_refused() -> None:
    parts: dict[str, Any] = {
        "shape": ModelShape(8, 2, 64),
        "layout": DcpLayout(4, 2),
        "workload": Workload.parse("q4s32"),
        "settings": Settings(),
    }
    assert Case(**parts).layout == parts["layout"]
    for name, part in parts.items():
        with pytest.raises(IllegalSettings, match=f"^{name} of a case is a {type(part).__name__}, not 'q4s32'"):
            Case(**(parts | {name: "q4s32"}))


def test_an_unknown_setting_is_told_the_nearest() -> None:
    for attempt in (lambda: check_name("pagesize"), lambda: Settings.from_json({"pagesize": 16})):
        with pytest.raises(
            IllegalSettings, match=r"unknown setting 'pagesize'; did you mean 'page_size'\?; known: path, "
        ):
            attempt()
