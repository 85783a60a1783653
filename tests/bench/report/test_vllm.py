"""What of a profile a vLLM server can run: its flags alone, and what they leave behind is said."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from bench.errors import UsageError
from bench.profile.entry import Candidate, Entry, default_settings
from bench.record import Environment, Label
from bench.report.vllm import serving
from dcp_core import DcpLayout, Settings, Workload
from dcp_core.settings import ExchangeName

H200 = Environment({"device_name": "NVIDIA H200"}, {"compute_capability": "9.0"})
DCP2 = DcpLayout(8, 2)
BATCH = Workload.parse("q2ks32k")
DEFAULT = default_settings(DCP2, BATCH)
FOLD = Settings(path="fold", kernel="fa3")


def entry(*timed: tuple[Settings, float], label: Label = Label.MEASURED, layout: DcpLayout = DCP2) -> Entry:
    candidates = sorted((Candidate(one, us, us, us, "0" * 16) for one, us in timed), key=lambda one: one.median_us)
    return Entry(layout, BATCH, label, "graph", True, tuple(candidates), candidates[0].settings)


def flags(*entries: Entry, layout: DcpLayout = DCP2) -> dict[str, str]:
    return dict(serving(entries, H200, layout).flags)


def test_the_flags_are_those_of_vllm_and_the_backend_is_named() -> None:
    found = serving([entry((DEFAULT, 100))], H200, DCP2, workspace_bytes=1 << 20)
    assert found.flags == {
        "--tensor-parallel-size": "8",
        "--decode-context-parallel-size": "2",
        "--dcp-comm-backend": "ag_rs",
        "--cp-kv-cache-interleave-size": "1",
        "--block-size": "16",
        "--attention-backend": "FLASHINFER",
    }
    words = shlex.split(found.to_text().replace("\\\n", " "), comments=True)
    assert words[:4] == ["VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE=1048576", "vllm", "serve", "MODEL"]
    assert words[4:] == [word for flag in found.flags.items() for word in flag]
    assert "FLASH_ATTN, its default on Hopper, was not" in found.notes[0]
    assert found.notes[1] == "Interleave 1 is what was timed: the profiles were asked about no other."
    assert found.notes[-1] == "vLLM runs what the profile chose with 1 batch."


def test_the_fastest_exchange_and_page_that_vllm_has_are_taken_over_all_batches() -> None:
    a2a, pages = replace(DEFAULT, exchange="a2a"), replace(DEFAULT, page_size=64)
    direct, odd = replace(DEFAULT, exchange="direct"), replace(DEFAULT, page_size=128)
    first = entry((DEFAULT, 100), (a2a, 90), (pages, 95), (direct, 50), (odd, 40))
    assert flags(first)["--dcp-comm-backend"] == "a2a"
    second = entry((DEFAULT, 100), (a2a, 150), (pages, 95))
    both = flags(first, second)
    assert (both["--dcp-comm-backend"], both["--block-size"]) == ("ag_rs", "64")


def test_a_batch_that_an_exchange_was_not_measured_with_says_nothing_against_it() -> None:
    """Its other settings being four times slower is no word about the exchange."""
    a2a, slow = replace(DEFAULT, exchange="a2a"), replace(DEFAULT, kernel="fa2", new_kernel="fa3")
    both = entry((DEFAULT, 100), (a2a, 95))
    assert flags(both, both, entry((DEFAULT, 100), (slow, 400)))["--dcp-comm-backend"] == "a2a"


def test_among_equals_the_default_stays() -> None:
    assert flags(entry((DEFAULT, 100), (replace(DEFAULT, exchange="a2a"), 100)))["--dcp-comm-backend"] == "ag_rs"


@pytest.mark.parametrize(
    "lacking",
    [FOLD, replace(DEFAULT, kernel="fa2"), replace(DEFAULT, exchange="direct"), replace(DEFAULT, kv_layout="HND")],
)
def test_what_vllm_lacks_is_said_with_what_it_costs(lacking: Settings) -> None:
    found = serving([entry((DEFAULT, 100), (lacking, 50)), entry((DEFAULT, 100))], H200, DCP2)
    assert found.flags["--dcp-comm-backend"] == "ag_rs"
    assert "With 1 of 2 batches the profile chose otherwise" in found.notes[-1]
    assert "takes 1.41 times as long in the geometric mean, 2.00 times at most" in found.notes[-1]


def test_fa3_is_what_auto_means_on_hopper() -> None:
    named = replace(DEFAULT, kernel="fa3")
    assert serving([entry((named, 100))], H200, DCP2).notes[-1] == "vLLM runs what the profile chose with 1 batch."
    unknown = serving([entry((named, 100))], Environment({}), DCP2)
    assert "was not measured with any of 1 batch" in unknown.notes[-1]


def test_of_simulated_batches_no_exchange_is_a_finding() -> None:
    simulated = entry((DEFAULT, 100), label=Label.SIMULATED)
    plain, told = (serving([simulated], H200, DCP2, exchange=one) for one in (None, ExchangeName.A2A))
    assert "No exchange was timed" in plain.notes[2]
    assert plain.notes[2].endswith("ag_rs is vLLM's default.")
    assert told.flags["--dcp-comm-backend"] == "a2a"
    assert told.notes[2].endswith("a2a is that of the times told, modelled, not timed.")
    assert plain.notes[-1] == told.notes[-1] == "vLLM runs the path and kernels that the profile chose with 1 batch."
    measured = entry((DEFAULT, 100), (replace(DEFAULT, exchange="a2a"), 60))
    assert flags(simulated, measured)["--dcp-comm-backend"] == "a2a"


def test_the_exchange_of_a_promised_time_is_kept_though_another_was_faster() -> None:
    a2a, pages = replace(DEFAULT, exchange="a2a"), replace(DEFAULT, page_size=64)
    found = serving([entry((DEFAULT, 100), (a2a, 60), (pages, 90))], H200, DCP2, exchange=ExchangeName.AG_RS)
    assert (found.flags["--dcp-comm-backend"], found.flags["--block-size"]) == ("ag_rs", "64")


def test_at_dcp_1_no_exchange_is_named_and_pages_follow_the_interleave() -> None:
    lone = DcpLayout(8)
    plain = default_settings(lone, BATCH)
    assert list(flags(entry((plain, 100), layout=lone), layout=lone)) == [
        "--tensor-parallel-size",
        "--block-size",
        "--attention-backend",
    ]
    assert flags(layout=DcpLayout(8, 2, 32))["--block-size"] == "32"
    with pytest.raises(UsageError, match="none of which interleave 128 divides"):
        flags(layout=DcpLayout(8, 2, 128))


def test_where_nothing_was_measured_the_defaults_are_named_as_such() -> None:
    found = serving([], H200, DCP2)
    assert found.flags["--dcp-comm-backend"] == "ag_rs"
    assert found.notes[1:] == ("Nothing was measured for this: these flags are vLLM's defaults.",)
