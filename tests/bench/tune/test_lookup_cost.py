"""What a lookup takes is printed by where the answer comes from; how long it is, is for the reader to judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.profile.profile import Profile
from bench.shipped import shipped_profiles
from bench.tune.lookup_cost import ASKED, costs_grid, main, times_us


def test_every_layout_is_asked_for_what_it_measured_and_for_more() -> None:
    (path,) = shipped_profiles("q4,kv1,d128,dtype=bfloat16", "h200")
    profile = Profile.load(path)
    found = list(times_us(profile))
    layouts = {entry.layout for entry in profile.entries}
    assert len(found) == len(profile.entries) + len(ASKED) * len(layouts)
    assert min(us for _, _, us in found) > 0
    rows = costs_grid([profile]).rows
    assert sum(int(row[2]) for row in rows) == len(found)
    assert {row[0] for row in rows} >= {"exact", "default"}


def test_a_folder_without_a_profile_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path)])
    assert ended.value.code == 2
    assert f"no profile, a file ending in .json, in {tmp_path}" in capsys.readouterr().err
