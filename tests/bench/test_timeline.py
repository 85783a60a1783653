"""What runs when in a step: told from what CUPTI saw, or not told at all, on every rank alike; a profiler on paper shows it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from bench import measure as measuring
from bench import timeline
from bench.clock import REPETITIONS, CudaClock, HostClock
from bench.record import MAX_PIECES
from bench.timeline import ATTEMPTS, Seen, communicates, median_repetition, short_name, timeline_of
from bench.times import Piece
from dcp_core.mesh import Mesh
from dcp_core.triton_ops import combine, merge, pack_mask, rows, turns, words

CUTLASS = "cutlass::arch::OpClassTensorOp, (cutlass::layout::Major)1, true"
NAMES = {
    "void flashinfer::BatchPrefillWithRaggedKVCacheKernel<flashinfer::KernelTraits<(flashinfer::MaskMode)1, 128u>, "
    "Params<a<b>>>(Params)": ("BatchPrefillWithRaggedKVCacheKernel", False),
    f"void cutlass::device_kernel<flash::Fwd<{CUTLASS}>>(flash::Fwd<{CUTLASS}>::Params)": ("device_kernel", False),
    "void (anonymous namespace)::softmax_warp<float>(float*)": ("softmax_warp", False),
    "void flashinfer::PersistentVariableLengthMergeStatesKernel<8u, 2>(float*, int)": (
        "PersistentVariableLengthMergeStatesKernel",
        False,
    ),
    "_merge": ("_merge", False),
    "Memset (Device)": ("Memset", False),
    "Memcpy HtoD (Pinned -> Device)": ("Memcpy HtoD", False),
    "<lambda>": ("<lambda>", False),
    "gather_rows": ("gather_rows", True),
    "Memcpy DtoD (Device -> Device)": ("Memcpy DtoD", True),
    "Memcpy PtoP (Device -> Device)": ("Memcpy PtoP", True),
    "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)": ("ncclDevKernel_AllGather_RING_LL", True),
    "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<at::native::direct_copy_kernel_cuda("
    "at::TensorIteratorBase&)::{lambda()#3}::operator()() const::{lambda()#12}>(int)": ("copy", True),
    "void at::native::elementwise_kernel<128, 4, at::native::FillFunctor<int>>(int)": ("elementwise_kernel", False),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_short_and_tells_whether_it_is_of_the_exchange(name: str) -> None:
    short = short_name(name)
    assert (short, communicates(short)) == NAMES[name]


EXCHANGES = (words.gather_words, words.combine_words, rows.gather_rows, turns.meet_once, rows.combine_rows)


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [((*EXCHANGES, combine._combine, combine._rescale), True), ((merge._merge, pack_mask._pack_rows), False)],
)
def test_kernels_of_our_own_are_told_by_the_names_that_they_have(kernels: tuple[Any, ...], expected: bool) -> None:
    assert {communicates(kernel.fn.__name__) for kernel in kernels} == {expected}


# --- One repetition of several ------------------------------------------------------------------------------------------

AHEAD = ("Memset (Device)", "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)")
STEP = ("meet_once", "void attend<1>(int)", "Memcpy DtoD (Device -> Device)", "combine_rows")


def repetition(start_us: float, length_us: float, names: tuple[str, ...] = STEP) -> list[Seen]:
    """Return what is seen of a repetition: the cooling, the rendezvous, then pieces that begin a µs apart and end together."""
    ahead = [Seen(start_us, start_us + 40, AHEAD[0]), Seen(start_us + 41, start_us + 49, AHEAD[1])]
    begin = start_us + 50
    return [*ahead, *(Seen(begin + place, begin + length_us, name) for place, name in enumerate(names))]


def repetitions(lengths_us: tuple[float, ...], names: tuple[str, ...] = STEP) -> list[Seen]:
    return [piece for place, length in enumerate(lengths_us) for piece in repetition(1e6 + 1e3 * place, length, names)]


@pytest.mark.parametrize("lengths_us", [(9.0, 300.0, 20.0, 7.0, 21.0), (300.0, 20.0), (20.0,)])
def test_the_repetition_of_median_length_is_kept_without_what_is_ahead_of_it(lengths_us: tuple[float, ...]) -> None:
    seen = repetitions(lengths_us)
    assert median_repetition(seen[::-1], len(lengths_us)) == (
        Piece("meet_once", 0, 20, communicates=True),
        Piece("attend", 1, 20, communicates=False),
        Piece("Memcpy DtoD", 2, 20, communicates=True),
        Piece("combine_rows", 3, 20, communicates=True),
    )


def test_a_piece_that_outlasts_those_after_it_ends_its_repetition() -> None:
    long = [Seen(50, 350, "attend"), Seen(60, 70, "gather_rows")]
    short = [Seen(1050, 1150, "attend"), Seen(1120, 1160, "gather_rows")]
    seen = [*repetition(0, 1, ()), *long, *repetition(1000, 1, ()), *short]
    assert median_repetition(seen, 2)[0] == Piece("attend", 0, 100, communicates=False)


@pytest.mark.parametrize(
    ("seen", "count", "sentence"),
    [
        ([], 2, "one rendezvous, and this one has 0"),
        (repetitions((9.0, 9.0))[:-1], 2, "11 kernels are not 2 equal repetitions"),
        (repetitions((9.0, 9.0)), 1, "one rendezvous, and this one has 2"),
        (repetitions((9.0, 9.0), ()), 2, "a repetition of 0 pieces of work"),
        (repetitions((9.0,), ("attend",) * (MAX_PIECES + 1)), 1, f"of {MAX_PIECES + 1} pieces of work, not 1 to "),
        (repetition(0, 9) + repetition(99, 9, ("attend",) * 4), 2, "not of the same pieces of work"),
        ([*repetition(0, 9, ()), Seen(60, 59, "attend")], 1, "times of 'attend' should be neither negative"),
        (
            [*repetition(0, 9, ()), Seen(60, 70, "new"), Seen(62, 61, "attend")],
            1,
            "'attend' ends at 1 µs, before it begins",
        ),
    ],
)
def test_what_cannot_be_told_apart_is_refused(seen: list[Seen], count: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        median_repetition(seen, count)


# --- Ranks in step ------------------------------------------------------------------------------------------------------

WHOLE, TORN = repetitions((30.0, 20.0, 10.0)), repetitions((30.0, 20.0, 10.0))[1:]
OTHER = repetitions((5.0, 5.0, 5.0), ("attend",))


class Paper:
    """Two ranks that meet whenever they share, each with a profiler that shows one thing after another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shown: tuple[list[list[Seen]], list[list[Seen]]]) -> None:
        self.taken, self._left, self._place = [0, 0], [iter(each) for each in shown], threading.local()
        self.starts = [True, True]
        monkeypatch.setattr(timeline, "profile", self.profile)

    @contextmanager
    def profile(self, **_: object) -> Iterator[Any]:
        if not self.starts[self._place.rank]:
            raise RuntimeError("CUPTI_ERROR_NOT_INITIALIZED")
        yield SimpleNamespace(events=lambda: map(event, next(self._left[self._place.rank])))

    def timelines(self) -> list[tuple[Piece, ...]]:
        mesh = Mesh.simulated(2)
        assert mesh.board is not None
        members = mesh.members()
        for member in members:
            member.share = partial(mesh.board.swap, member.rank)  # type: ignore[method-assign]

        def seat(rank: int) -> tuple[Piece, ...]:
            self._place.rank = rank
            return timeline_of(partial(self._sample, rank), 3, members[rank])

        return mesh.each(seat)

    def _sample(self, rank: int, count: int) -> list[float]:
        self.taken[rank] += 1
        return [1.0] * count


def event(seen: Seen) -> Any:
    span = SimpleNamespace(start=seen.start_us, end=seen.end_us)
    return SimpleNamespace(device_type=SimpleNamespace(name="CUDA"), time_range=span, name=seen.name)


@pytest.mark.parametrize(
    ("first", "second", "attempts"),
    [
        ([TORN, WHOLE, WHOLE], [OTHER] * 3, 3),
        ([WHOLE, WHOLE], [OTHER, TORN], 2),
        ([TORN, WHOLE, [], WHOLE, WHOLE], [TORN] * 5, 5),
    ],
)
def test_rank_0_tells_what_it_saw_as_much_of_twice_and_all_repeat_as_often(
    first: list[list[Seen]], second: list[list[Seen]], attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = Paper(monkeypatch, (first, second))
    assert paper.timelines() == [median_repetition(WHOLE, 3)] * 2
    assert paper.taken == [attempts] * 2


@pytest.mark.parametrize("shown", [[WHOLE, TORN] * (ATTEMPTS // 2), [[]] * ATTEMPTS, [TORN] * ATTEMPTS])
def test_what_never_was_seen_whole_is_not_told(shown: list[list[Seen]], monkeypatch: pytest.MonkeyPatch) -> None:
    paper = Paper(monkeypatch, (shown, [WHOLE] * ATTEMPTS))
    assert paper.timelines() == [(), ()]
    assert paper.taken == [ATTEMPTS] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_where_a_rank_has_no_profiler_none_repeats(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = Paper(monkeypatch, ([], []))
    paper.starts[rank] = False
    assert paper.timelines() == [(), ()]
    assert paper.taken == [0, 0]


# --- Which steps --------------------------------------------------------------------------------------------------------


def on_paper(*, overlap: bool = True, size: int = 2, simulated: bool = False, clock: Any = None) -> Any:
    """Return a case that is ready to be timed, as far as it matters to whether its step is watched."""
    mesh = SimpleNamespace(size=size, is_simulated=simulated, align=lambda: None)
    case = SimpleNamespace(settings=SimpleNamespace(overlap=overlap))
    stand = SimpleNamespace(mesh=mesh, case=case, fullest=SimpleNamespace(launch=lambda: None))
    return SimpleNamespace(stand=stand, clock=clock or paper_clock())


def paper_clock(*, graphs: bool = True, each: int = REPETITIONS) -> CudaClock:
    clock = object.__new__(CudaClock)
    clock.graphs, clock.repetitions = graphs, each
    clock.prepare = lambda call, align=None: (call, align)  # type: ignore[assignment,method-assign,return-value]
    return clock


def asked(ready: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return what was asked to be watched."""
    watched: list[tuple[Any, ...]] = []
    monkeypatch.setattr(measuring, "timeline_of", lambda *what: watched.append(what) or (PIECE,))
    assert measuring._timeline(ready) == ((PIECE,) if watched else ())
    return watched


PIECE = Piece("attend", 0, 1, communicates=False)


@pytest.mark.parametrize(("each", "count"), [(10, 10), (3, 12), (40, 40)])
def test_whole_graphs_are_watched_behind_the_rendezvous(each: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = on_paper(clock=paper_clock(each=each))
    stand = ready.stand
    assert asked(ready, monkeypatch) == [((stand.fullest.launch, stand.mesh.align), count, stand.mesh)]


OTHERS: dict[str, Callable[[], Any]] = {
    "nothing runs at once": lambda: on_paper(overlap=False),
    "one rank": lambda: on_paper(size=1),
    "simulated": lambda: on_paper(simulated=True),
    "launched": lambda: on_paper(clock=paper_clock(graphs=False)),
    "a CPU": lambda: on_paper(clock=cast(CudaClock, HostClock())),
}


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_step_is_watched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(OTHERS[name](), monkeypatch) == []


def test_watching_keeps_what_ran_on_the_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    host = SimpleNamespace(device_type=SimpleNamespace(name="CPU"), time_range=None, name="cudaGraphLaunch")

    @contextmanager
    def profile(*, activities: list[Any]) -> Iterator[Any]:
        assert activities == [torch.profiler.ProfilerActivity.CUDA]
        yield SimpleNamespace(events=lambda: [host, event(Seen(1, 2, "attend"))])

    monkeypatch.setattr(timeline, "profile", profile)
    assert timeline.watch(lambda count: [7.0] * count, 2) == ([7.0, 7.0], [Seen(1, 2, "attend")])
