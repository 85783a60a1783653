"""Sweeps cross their axes into cases, each step once, and say what cannot go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UsageError
from bench.files import FileError
from bench.policy import Policy
from bench.sweep import Expansion, Sweep, parse_precision, shipped_sweeps
from dcp_core import Case
from dcp_core.settings import ExchangeName, KernelName, MaskForm, PathName, canonical
from dcp_core.shapes import Workload

BASE = 'model = "qwen3-235b-a22b"\ntp = 8\n'


def load(folder: Path, text: str, *, on_gpu: bool = False) -> Sweep:
    file = folder / "one.toml"
    file.write_text(text, encoding="utf-8")
    return Sweep.load(file, on_gpu=on_gpu)


def typed(**axes: Sequence[str]) -> Sweep:
    return Sweep.from_options({"model": ["qwen3-235b-a22b"], "tp": ["8"], "batch": ["8q1s32k"], **axes})


def paths(expansion: Expansion) -> list[str]:
    return [f"{case.settings.path}/{case.layout.dcp}" for case in expansion.cases]


def test_dcp_1_is_the_tp_baseline_once_whatever_the_paths(tmp_path: Path) -> None:
    sweep = load(
        tmp_path,
        BASE + 'dcp = [1, 2]\nbatch = "q512s1k"\npath = ["split", "mask", "fold"]\nexchange = ["ag_rs", "a2a"]',
    )
    expansion = sweep.expand(ranks=2)
    assert paths(expansion) == ["tp/1", "split/2", "split/2", "mask/2", "mask/2", "fold/2", "fold/2"]
    assert expansion.cases[0].settings.exchange is ExchangeName.ALONE
    assert expansion.illegal == ()


def test_at_dcp_1_every_interleave_is_the_same_case() -> None:
    expansion = typed(dcp=["1", "2"], interleave=["1", "2", "32"], path=["decode"]).expand(ranks=2)
    assert [(case.layout.dcp, case.layout.interleave) for case in expansion.cases] == [(1, 1), (2, 1), (2, 2)]
    assert [one.reason for one in expansion.illegal] == [
        "interleave 32 must divide the page size 16; the nearest that does is 16"
    ]


def test_a_group_beyond_the_ranks_is_simulated_once(tmp_path: Path) -> None:
    sweep = typed(dcp=["1", "2"], exchange=["ag_rs", "a2a"], path=["decode"])
    assert [case.settings.exchange for case in sweep.expand(ranks=1).cases] == ["alone", "loopback"]
    assert [case.settings.exchange for case in sweep.expand(ranks=2).cases] == ["alone", "ag_rs", "a2a"]


def test_context_new_and_concurrency_build_batches() -> None:
    sweep = Sweep.from_options(
        {"model": ["tiny"], "tp": ["4"], "context": ["0", "8k"], "new": ["1", "512"], "concurrency": ["1", "16"]}
    )
    batches = [str(case.workload) for case in sweep.expand(1).cases]
    assert batches == ["q1", "16q1", "q512", "16q512", "q1s8193", "16q1s8193", "q512s8704", "16q512s8704"]


def test_settings_that_play_no_part_are_measured_once(tmp_path: Path) -> None:
    sweep = load(
        tmp_path,
        BASE + 'dcp = 2\nbatch = "8q1s32k"\npath = ["decode", "split"]\nkernel = "fa2"\n'
        '[set]\nmask_form = ["bool", "packed"]\nbatching = ["separate", "joined"]\n'
        'new_kernel = ["", "fa2", "fa3"]\nskip_empty_context = [true, false]',
    )
    settings = [case.settings for case in sweep.expand(1).cases]
    assert [(one.path, one.new_kernel) for one in settings] == [("decode", None), ("split", None), ("split", "fa3")]


def test_skipping_an_empty_context_is_a_choice_where_there_is_none(tmp_path: Path) -> None:
    text = BASE + 'dcp = 2\nbatch = ["q512", "q512s1k"]\npath = "split"\n[set]\nskip_empty_context = [true, false]'
    assert [str(case.workload) for case in load(tmp_path, text).expand(2).cases] == ["q512", "q512", "q512s1k"]
    # Simulated, the exchange is not timed: nothing would tell the two apart.
    assert [str(case.workload) for case in load(tmp_path, text).expand(1).cases] == ["q512", "q512s1k"]


def test_kernels_of_split_cross_only_when_asked(tmp_path: Path) -> None:
    text = BASE + 'dcp = 2\nbatch = "q2ks32k"\npath = "split"\nkernel = ["fa2", "fa3"]\n'
    assert len(load(tmp_path, text).expand(1).cases) == 2
    assert len(load(tmp_path, text + '[set]\nnew_kernel = ["fa2", "fa3"]').expand(1).cases) == 4


def test_what_cannot_go_together_is_listed_with_its_reason() -> None:
    sweep = typed(
        dcp=["2", "4"], path=["mask", "decode", "fold"], kernel=["fa2", "fa3"], batch=["q8s1k"], interleave=["1", "16"]
    )
    expansion = sweep.expand(1)
    assert {case.settings.path for case in expansion.cases} == {PathName.MASK, PathName.FOLD}
    reasons = {illegal.text: illegal.reason for illegal in expansion.illegal}
    assert "nearest legal choice at tp 8 is dcp 2" in reasons["qwen3-235b-a22b, tp 8, dcp 4"]
    assert "fa3 takes no custom mask" in reasons["path mask, kernel fa3"]
    assert "path decode takes one new token" in reasons["qwen3-235b-a22b, tp 8, dcp 2, q8s1k, path decode"]
    assert "fold needs interleave 1" in reasons["qwen3-235b-a22b, tp 8, dcp 2, interleave 16, q8s1k, path fold"]


def test_asking_for_tp_alone_at_dcp_2_says_why_not() -> None:
    expansion = typed(dcp=["2"], path=["tp"]).expand(1)
    assert expansion.cases == ()
    assert "path tp" in expansion.illegal[0].reason


def test_synthetic_layouts_run_only_where_admitted(tmp_path: Path) -> None:
    text = BASE + 'dcp = 4\nbatch = "8q1s1k"\npath = "decode"\n'
    assert load(tmp_path, text).expand(1).cases == ()
    cases = load(tmp_path, "synthetic = true\n" + text).expand(1).cases
    assert [case.synthetic for case in cases] == [True]


def test_parts_are_a_union_that_inherits(tmp_path: Path) -> None:
    text = (
        BASE
        + 'batch = "8q1s1k"\npath = "decode"\n[[part]]\n[[part]]\ndcp = [1, 2]\n[[part]]\ncontext = "1k"\nnew = 4\n'
    )
    cases = load(tmp_path, text).expand(1).cases
    assert [(case.settings.path, str(case.workload)) for case in cases] == [
        ("tp", "8q1s1k"),
        ("decode", "8q1s1k"),
        ("tp", "q4s1028"),
    ]


def test_mixed_batches_keep_their_order() -> None:
    assert str(typed(batch=["q512_8q1s1k_2q4s8"]).expand(1).cases[0].workload) == "q512_8q1s1k_2q4s8"


def test_the_gpu_table_applies_on_a_gpu_alone(tmp_path: Path) -> None:
    text = BASE + 'batch = "8q1s1k"\n[set]\npage_size = 32\n[gpu]\nkernel = ["fa2", "fa3"]\n[gpu.set]\npage_size = 64\n'
    (on_cpu,) = load(tmp_path, text).parts
    (on_gpu,) = load(tmp_path, text, on_gpu=True).parts
    assert (on_cpu.kernel, dict(on_cpu.set)) == ((KernelName.REFERENCE,), {"page_size": (32,)})
    assert (on_gpu.kernel, dict(on_gpu.set)) == ((KernelName.FA2, KernelName.FA3), {"page_size": (64,)})


def test_options_override_every_part_of_a_file(tmp_path: Path) -> None:
    sweep = load(
        tmp_path,
        BASE + '[[part]]\nbatch = "8q1s1k"\n[[part]]\ncontext = "1k"\nnew = 4\n[gpu]\nkernel = "fa2"\n',
        on_gpu=True,
    )
    changed = sweep.override({"context": ["2k"], "kernel": ["fa3"], "tp": ["16"]}, {"page_size": ["32", "64"]})
    assert [[str(batch) for batch in part.workloads()] for part in changed.parts] == [["q1s2049"], ["q4s2052"]]
    assert all(part.kernel == (KernelName.FA3,) and part.tp == (16,) for part in changed.parts)
    assert {case.settings.page_size for case in changed.expand(1).cases} == {32, 64}


@pytest.mark.parametrize("name", shipped_sweeps())
@pytest.mark.parametrize("on_gpu", [False, True])
def test_shipped_sweeps_declare_what_they_measure(name: str, on_gpu: bool) -> None:
    sweep, ranks = Sweep.load(name, on_gpu=on_gpu), 2 if name == "exchange" else 1
    assert sweep.description
    expansion = sweep.expand(ranks)
    assert 20 <= len(expansion.cases) <= 250
    has_baseline = any(case.settings.path is PathName.TP for case in expansion.cases)
    assert has_baseline or name == "exchange", "each has its baseline, but that of what only several ranks do"
    keys = [case.key for case in expansion.cases]
    assert len(set(keys)) == len(keys)
    assert expansion == Sweep.load(name, on_gpu=on_gpu).expand(ranks), "the order is fixed"


def test_quick_is_small_and_whole() -> None:
    cases = Sweep.load("quick").expand(ranks=2).cases
    assert 25 <= len(cases) <= 40
    assert {case.settings.path for case in cases} == set(PathName)
    assert {case.settings.exchange for case in cases} == {"alone", "loopback", "ag_rs", "a2a"}
    assert {case.settings.kernel for case in cases} == {KernelName.REFERENCE}
    assert max(sum(case.workload.total_lens) for case in cases) <= 8 * 1024


def test_seed_holds_the_claim() -> None:
    cases = Sweep.load("seed", on_gpu=True).expand(ranks=1).cases
    assert {str(case.workload) for case in cases} == {"q32k", "q8ks32k", "q2ks32k", "q128s32k", "16q1s32k"}
    assert {case.settings.mask_form for case in cases if case.settings.path is PathName.MASK} == set(MaskForm)


def test_dcp_measures_every_legal_group_and_labels_the_others() -> None:
    cases = Sweep.load("dcp", on_gpu=True).expand(ranks=1).cases
    legal = {
        (case.layout.tp, case.layout.dcp)
        for case in cases
        if case.shape.name == "qwen3-235b-a22b" and not case.synthetic
    }
    assert legal == {(8, 1), (8, 2), (16, 1), (16, 2), (16, 4), (32, 1), (32, 2), (32, 4), (32, 8)}
    assert any(case.synthetic for case in cases)


WRONG = [
    ("tp = 8\nmodel = = 3", FileError, "not valid TOML: .*line 2"),
    (BASE + 'bach = "8q1s1k"', FileError, "unknown key 'bach'; did you mean 'batch'?"),
    (BASE + 'batch = "8q1s1k"\n[[part]]\ndcpp = 8', FileError, "part 1: unknown key 'dcpp'; did you mean 'dcp'?"),
    (BASE + 'batch = "8q1s1k"\n[part]\ntp = 8', FileError, r"begins with \[\[part\]\]"),
    (BASE + 'batch = "8z1s1k"', UsageError, "batch: .*character 2"),
    (BASE + 'batch = "8q1"\ncontext = 8', UsageError, "give batches, or context to build them from, not both"),
    (BASE, UsageError, "give batch, or context, new and concurrency"),
    ('tp = 8\nbatch = "8q1"', UsageError, "give model"),
    ('model = "qwen3-235b-a22"\ntp = 8\nbatch = "8q1"', UsageError, "unknown model .*did you mean 'qwen3-235b-a22b'"),
    (BASE + 'batch = "8q1"\npath = "splitt"', UsageError, "path: unknown path 'splitt'; did you mean 'split'?"),
    (BASE + 'batch = "8q1"\ndcp = [1.5]', UsageError, "dcp is a list of texts or whole numbers"),
    (BASE + 'batch = "8q1"\ndcp = []', UsageError, "dcp needs 1 to 1000 values, not 0"),
    (BASE + 'batch = "8q1"\ndcp = 0', UsageError, "dcp: a whole number from 1 to 65536"),
    (BASE + 'batch = "8q1"\n[set]\npage = 16', UsageError, "unknown setting 'page'"),
    (BASE + 'batch = "8q1"\n[set]\nkernel = "fa2"', UsageError, "kernel is an axis of its own"),
    (BASE + 'batch = "8q1"\nset = 3', FileError, "set is a table"),
    (BASE + 'batch = "8q1"\noften = 3', FileError, "often is a table"),
    (BASE + 'batch = "8q1"\n[often]\n8q1 = 0', FileError, "often: a batch comes a positive number of times, not '0'"),
    (BASE + 'batch = "8q1"\n[often]\n8q1 = true', FileError, "a positive number of times, not 'True'"),
    (BASE + 'batch = "8q1"\n[often]\n8x1 = 1', FileError, "often: .*8x1"),
    (
        BASE + 'batch = "8q1"\n[often]\n8q1s1k = 2\n8q1s1024 = 3',
        FileError,
        "'8q1s1024' is 8q1s1k, which is there already",
    ),
    (BASE + 'batch = "8q1"\nsynthetic = 1', FileError, "synthetic is true or false"),
    (
        BASE + 'batch = "8q1"\n[policy]\nprecision = "fast"',
        FileError,
        "policy: precision is quick, standard, strict or a number",
    ),
    (BASE + 'batch = "8q1"\n[policy]\nmin_samples = true', FileError, "min_samples is a whole number"),
    (
        BASE + 'batch = "8q1"\n[policy]\nmin_samples = 50\nmax_samples = 40',
        FileError,
        "min_samples 50 exceeds max_samples 40",
    ),
    (BASE + 'batch = "8q1"\n[policy]\nmax_seconds = inf', FileError, "max_seconds is a positive number"),
    (BASE + 'batch = "8q1"\n[policy]\nmin_warmup = 0', FileError, "policy: min_warmup is a whole number from 1 to"),
    (BASE + 'batch = "8q1"\n[policy]\nmin_samples = 0', FileError, "policy: min_samples is a whole number from 1 to"),
    (BASE + f'batch = "8q1"\n[policy]\nseed = {1 << 70}', FileError, "policy: seed is a whole number from 0 to"),
    (BASE + 'batch = "8q1"\n[policy]\nseconds = 3', FileError, "did you mean 'max_seconds'"),
    (BASE + 'batch = "8q1"\n[gpu]\npart = 1', FileError, "gpu: unknown key 'part'"),
    (
        'schema = 2\nof_that_version = "8q1"',
        FileError,
        "a sweep of version 2, this dcpbench reads up to 1; use a newer dcpbench",
    ),
    ('schema = "1"\n' + BASE, FileError, "schema is a whole number, 1 or none, not '1'"),
    ("schema = 0\n" + BASE, FileError, "schema is a whole number"),
]


@pytest.mark.parametrize(("text", "error", "sentence"), WRONG)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, text: str, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        load(tmp_path, text)
    assert "one.toml" in str(caught.value) or "precision" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sweep_may_say_its_version(tmp_path: Path) -> None:
    text = BASE + 'batch = "8q1"'
    assert load(tmp_path, "schema = 1\n" + text) == load(tmp_path, text)


def test_wrong_names_and_options_name_the_nearest() -> None:
    with pytest.raises(FileError, match="unknown sweep 'qick'; did you mean 'quick'"):
        Sweep.load("qick")
    with pytest.raises(FileError, match="no such file"):
        Sweep.load("nowhere/one.toml")
    with pytest.raises(UsageError, match="unknown axis 'kernal'; did you mean 'kernel'"):
        typed(kernal=["fa2"])
    with pytest.raises(UsageError, match="give model"):
        Sweep.from_options({"tp": ["8"], "batch": ["8q1"]})


def test_sizes_are_capped_before_anything_is_crossed(tmp_path: Path) -> None:
    many = [str(value) for value in range(1, 900)]
    with pytest.raises(UsageError, match="combinations; 200000 are the limit"):
        typed(tp=many, dcp=many, interleave=many).expand(1)
    with pytest.raises(FileError, match="larger than 1024 KiB"):
        load(tmp_path, "#" * (1 << 20) + BASE)


def test_policy_words_and_numbers(tmp_path: Path) -> None:
    often = BASE + 'batch = ["8q1", "q2k"]\n[often]\n"8q1" = 3\nq2k = 0.5'
    assert load(tmp_path, often).often == {Workload.parse("8q1"): 3.0, Workload.parse("q2k"): 0.5}
    text = BASE + 'batch = "8q1"\n[policy]\nprecision = "strict"\nmax_seconds = 2\ncold = false\nseed = 0'
    assert load(tmp_path, text).policy == replace(Policy(), precision=0.005, max_seconds=2.0, cold=False)
    assert parse_precision("0.02") == 0.02
    for wrong in ("0", "1", "-0.1", "nan", "quik"):
        with pytest.raises(UsageError, match="precision is"):
            parse_precision(wrong)


axis_values = {
    "model": ["tiny", "qwen3-30b-a3b"],
    "tp": ["4", "8", "3"],
    "dcp": ["1", "2", "4"],
    "interleave": ["1", "16", "5"],
    "batch": ["8q1s1k", "q512", "q8s9", "4q1s1k_q16"],
    "path": list(PathName),
    "kernel": list(KernelName),
    "exchange": list(ExchangeName),
}


@given(
    st.fixed_dictionaries(
        {axis: st.lists(st.sampled_from(v), min_size=1, unique=True) for axis, v in axis_values.items()}
    )
)
def test_any_cross_gives_legal_canonical_cases_once(axes: dict[str, list[str]]) -> None:
    expansion = Sweep.from_options(axes).expand(ranks=2)
    assert len({case.key for case in expansion.cases}) == len(expansion.cases)
    for case in expansion.cases:
        assert not case.synthetic
        assert case.settings == canonical(case.settings, case.layout, case.workload)
        assert (case.settings.path is PathName.TP) == (case.layout.dcp == 1)
        assert Case.from_json(case.to_json()) == case
    assert all(illegal.reason for illegal in expansion.illegal)
