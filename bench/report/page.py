"""A run as one page of HTML: the answer first, then the decision map, the other pictures, and tables.

The tables tell which dcp and which settings, every trial with the command that repeats it, and the machine.

It needs no network: styles, the script and pictures are inside, and its policy for content lets a browser take nothing else. What
comes out of files, names of models and machines say, stands in it as text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from bench.grid import Column, Grid, printable
from bench.profile.profile import Profile
from bench.record import Measured, Trial, latest
from bench.report.choices import entries_grid
from bench.report.command import command_of
from bench.report.dcp_choice import DcpChoice, dcp_choices
from bench.report.plot import Draw, Drawn, draw_all, figures
from bench.report.summary import WHAT_WORDS_MEAN, about, gains, machine_grids, others_grid
from bench.report.table import dcp_of, flag_letters, label_of, micros, notes_of, settings_line, spread

_HERE = Path(__file__).parent
_FILTERED = 30
"""Rows from which on a table can be filtered."""
_FILTER = (
    "<div class=controls><label>Show rows with all of these words "
    '<input type=search placeholder="16q1s32k fold"></label><output aria-live=polite></output></div>'
)
_MAP = "decision-map"
"""The picture that stands before the others, in a section of its own."""
MOST_MAPS = 13
"""Of up to 150 KB each: with all other pictures, and tables of 2,000 trials, less than 5 MB."""
PICTURES = figures(most_maps=MOST_MAPS)
"""What draws those of a page."""


def page(
    trials: Sequence[Trial], profiles: Sequence[Profile], *, command: str, draws: Mapping[str, Draw] = PICTURES
) -> str:
    """Return a page of HTML about some trials; of each case the last counts.

    Args:
        profiles: picked from them.
        command: that makes the page again.
        draws: what draws its pictures, by name.
    """
    last = latest(trials)
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    choices = dcp_choices(last)
    decision_map, pictures = _pictures(last, command, draws)
    sections = [
        ("answer", "Answer", _answer(choices)),
        ("map", "Decision map", decision_map),
        ("pictures", "Pictures", pictures),
        ("dcp", "Which dcp", _dcp_tables(choices)),
        ("settings", "Settings", _settings(profiles)),
        ("words", "Words", _list(WHAT_WORDS_MEAN)),
        ("trials", "Every case", _measured(last)),
        ("others", "Skipped and failed", _others(last)),
        ("machine", "Where it was measured", _machine(last, command)),
    ]
    filled = [(name, title, content) for name, title, content in sections if content]
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{content}</section>' for name, title, content in filled)
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in filled)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>dcpbench: {_text(about(last))}</title><style>{style}</style></head><body>"
        f"<header><h1>Decode context parallel attention</h1>"
        f"<p class=soft>{_text(about(last))}</p>"
        f"<nav aria-label=Sections><ul>{links}</ul></nav></header><main>{body}</main><script>{script}</script></body></html>\n"
    )


def _answer(choices: Sequence[DcpChoice]) -> str:
    """Say in words which dcp to run."""
    parts = []
    for choice in choices:
        says = "".join(f"<li>{_text(sentence)}</li>" for sentence in choice.says)
        parts.append(f"<div class=answer><h3>{_text(choice.subject)}</h3><ul>{says}</ul></div>")
    return "".join(parts) or "<p>Nothing was measured, so no dcp can be told.</p>"


def _dcp_tables(choices: Sequence[DcpChoice]) -> str:
    """Return the table behind each answer, where there is one."""
    return "".join(f"<h3>{_text(choice.subject)}</h3>{_grid(choice.grid)}" for choice in choices if choice.grid)


def _settings(profiles: Sequence[Profile]) -> str:
    """Say what was gained by choosing settings, and return the tables of those that were chosen."""
    tables = "".join(_grid(entries_grid(profile)) for profile in profiles)
    return f"<p class=answer>{_text(gains(profiles))}</p>{tables}"


def _pictures(trials: Sequence[Trial], command: str, draws: Mapping[str, Draw]) -> tuple[str, str]:
    """Return the decision maps, or nothing; and the other pictures that the trials allow, with why some are missing.

    On a dark screen the style sheet inverts them: what ``dcpbench plot --dark`` draws would double the page and its time.
    """
    maps: list[str] = []
    others: list[str] = []
    missing: list[str] = []
    for picture in draw_all(trials, command=command, formats=("png",), draws=draws):
        if isinstance(picture, Drawn):
            (maps if picture.figure == _MAP else others).append(_figure(picture))
        else:
            missing.append(f"{picture.name}: {picture.reason}")
    return "".join(maps), "".join(others) + (f"<h3>Not drawn</h3>{_list(missing)}" if missing else "")


def _figure(picture: Drawn) -> str:
    """Return a picture, which is moved sideways on a narrow screen, by keys too."""
    data = base64.b64encode(_few_colours(picture.contents[0])).decode()
    name = _text(picture.figure.replace("-", " ") + (f": {picture.page}" if picture.page else ""))
    return (
        f'<figure><div class=wide tabindex=0 role=region aria-label="{name}">'
        f'<img alt="{_text(picture.title)}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{name}</figcaption></figure>"
    )


def _few_colours(png: bytes) -> bytes:
    """Return a picture in 256 colours, a third of its size: all that a plot needs."""
    from PIL import Image

    small = BytesIO()
    Image.open(BytesIO(png)).convert("RGB").quantize(256).save(small, "PNG", optimize=True)
    return small.getvalue()


def _measured(trials: Sequence[Trial]) -> str:
    """Return the table of all that was measured, which a script sorts and filters."""
    columns = ("model", "tp", "dcp", "batch", "settings", "step µs", "95%", "plan µs", "label", "flags", "again")
    heads = [Column(name, right=name in ("tp", "step µs", "95%", "plan µs")) for name in columns]
    letters, meanings = flag_letters(trials)
    rows = [_row(trial, trial.outcome, letters) for trial in trials if isinstance(trial.outcome, Measured)]
    return f"{_FILTER}{_table(heads, rows)}{_list([*meanings, *notes_of(trials, flagged=False)])}"


def _row(trial: Trial, outcome: Measured, letters: Mapping[str, str]) -> str:
    case, step = trial.case, outcome.step_us
    half = (step.high - step.low) / 2 / step.median if step.median else 0.0
    texts = [_text(text) for text in (case.shape.name, str(case.layout.tp), dcp_of(case), str(case.workload))]
    cells = [f"<td>{texts[0]}", f"<td class=right>{texts[1]}", f"<td>{texts[2]}", f"<td>{texts[3]}"]
    cells += [f"<td>{_text(settings_line(case.settings))}"]
    cells += [
        f'<td class=right data-value="{value:.6g}">{_text(text)}'
        for value, text in (
            (step.median, micros(step.median)),
            (half, spread(step)),
            (outcome.plan_us, micros(outcome.plan_us)),
        )
    ]
    cells += [
        f"<td class=label>{_text(label_of(trial, outcome))}",
        f"<td>{' '.join(letters[flag] for flag in outcome.flags)}",
    ]
    cells += [f"<td><details><summary>command</summary><code>{_text(command_of(trial))}</code></details>"]
    return f"<tr>{''.join(f'{cell}</td>' for cell in cells)}</tr>"


def _others(trials: Sequence[Trial]) -> str:
    """Return what was skipped and what failed, each with its reason and its command."""
    grid = others_grid(trials)
    return _grid(grid) if grid.rows else "<p>Nothing was skipped, and nothing failed.</p>"


def _machine(trials: Sequence[Trial], command: str) -> str:
    """Return where it was measured, and the command that makes the page again: it may name many files."""
    tables = "".join(map(_grid, machine_grids(trials)))
    return f"{tables}<p class=soft>This page was made by <code>{_text(command)}</code></p>"


def _grid(grid: Grid) -> str:
    """Return a table of text as one of HTML."""
    kinds = [_kind(column) for column in grid.columns]
    rows = [
        f"<tr{' class=best' if index in grid.emphasized else ''}>"
        + "".join(f"<td{kind}>{_text(cell)}</td>" for cell, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for index, row in enumerate(grid.rows)
    ]
    below = "".join(f"<p class=soft>{_text(line)}</p>" for line in grid.footnotes)
    return f"{_FILTER if len(rows) >= _FILTERED else ''}{_table(grid.columns, rows, grid.title)}{below}"


def _table(columns: Sequence[Column], rows: Sequence[str], title: str = "") -> str:
    """Return a table that a script sorts; on a narrow screen it is moved sideways, by keys too, and its labels stay."""
    heads = "".join(
        f"<th scope=col{_kind(one)}><button type=button>{_text(one.heading)}</button></th>" for one in columns
    )
    name = _text(title) or "Table"
    return (
        f'<div class=wide tabindex=0 role=region aria-label="{name}"><table>'
        f"{f'<caption>{name}</caption>' if title else ''}"
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _kind(column: Column) -> str:
    return " class=right" if column.right else " class=label" if column.heading == "label" else ""


def _list(lines: Sequence[str]) -> str:
    return f"<ul class=soft>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _text(text: str) -> str:
    return escape(printable(text))


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
