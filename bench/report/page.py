"""A run as one page of HTML: the answer first, then pictures, every trial with the command that repeats it, and the machine.

It needs no network: styles, the script and pictures are inside, and its policy for content lets a browser take nothing else. What
comes out of files, names of models and machines say, stands in it as text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from bench.grid import Column, Grid, printable
from bench.profile.profile import Profile
from bench.record import Measured, Trial, latest
from bench.report.choices import entries_grid
from bench.report.command import command_of
from bench.report.dcp_choice import dcp_choices
from bench.report.plot import Drawn, draw_all, timed_alike
from bench.report.summary import WHAT_WORDS_MEAN, about, gains, machine_grids, others_grid
from bench.report.table import dcp_of, label_of, micros, notes_of, settings_line, spread

_HERE = Path(__file__).parent
_FILTERED = 20
"""Rows from which on a table can be filtered."""
_FILTER = (
    "<div class=controls><label>Show rows with all of these words "
    '<input type=search placeholder="16q1s32k fold"></label><output aria-live=polite></output></div>'
)


def page(trials: Sequence[Trial], profiles: Sequence[Profile], *, command: str) -> str:
    """Return a page of HTML about some trials; of each case the last counts.

    Args:
        profiles: picked from them.
        command: that makes the page again.
    """
    last = latest(trials)
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    sections = [
        ("answer", "Answer", _answer(last, profiles)),
        ("pictures", "Pictures", _pictures(last, command)),
        ("trials", "Every case", _measured(last)),
        ("others", "Skipped and failed", _others(last)),
        ("machine", "Where it was measured", "".join(map(_grid, machine_grids(last)))),
    ]
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{content}</section>' for name, title, content in sections)
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>dcpbench: {_text(about(last))}</title><style>{style}</style></head><body>"
        f"<header><h1>Decode context parallel attention</h1>"
        f"<p class=soft>{_text(about(last))}. Made by <code>{_text(command)}</code>.</p>"
        f"<nav aria-label=Sections><ul>{links}</ul></nav></header><main>{body}</main><script>{script}</script></body></html>\n"
    )


def _answer(trials: Sequence[Trial], profiles: Sequence[Profile]) -> str:
    """Say which dcp to run, then which settings with each, in words and in tables."""
    parts = []
    for choice in dcp_choices(timed_alike(trials)):
        says = "".join(f"<li>{_text(sentence)}</li>" for sentence in choice.says)
        parts.append(f"<div class=answer><h3>{_text(choice.subject)}</h3><ul>{says}</ul></div>")
        parts += [_grid(choice.grid)] if choice.grid else []
    parts += [f"<p class=answer>{_text(gains(profiles))}</p>", *(_grid(entries_grid(profile)) for profile in profiles)]
    words = "".join(f"<li>{_text(line)}</li>" for line in WHAT_WORDS_MEAN)
    return f"{''.join(parts)}<h3>Words</h3><ul class=soft>{words}</ul>"


def _pictures(trials: Sequence[Trial], command: str) -> str:
    """Return every picture that the trials allow, and why others are missing.

    On a dark screen the style sheet inverts them: what ``dcpbench plot --dark`` draws would double the page and its time.
    """
    parts, missing = [], []
    for picture in draw_all(trials, command=command, formats=("png",)):
        if isinstance(picture, Drawn):
            data = base64.b64encode(_few_colours(picture.contents[0])).decode()
            title = _text(picture.name.replace("-", " "))
            parts.append(
                f'<figure><img alt="{title}" src="data:image/png;base64,{data}"><figcaption>{title}</figcaption></figure>'
            )
        else:
            missing.append(f"<li>{_text(picture.name)}: {_text(picture.reason)}</li>")
    return "".join(parts) + (f"<h3>Not drawn</h3><ul class=soft>{''.join(missing)}</ul>" if missing else "")


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
    rows = [_row(trial, trial.outcome) for trial in trials if isinstance(trial.outcome, Measured)]
    notes = "".join(f"<li>{_text(note)}</li>" for note in notes_of(trials))
    return f"{_FILTER}{_table(heads, rows)}<ul class=soft>{notes}</ul>"


def _row(trial: Trial, outcome: Measured) -> str:
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
    cells += [f"<td class=label>{_text(label_of(trial, outcome))}", f"<td>{_text('; '.join(outcome.flags))}"]
    cells += [f"<td><details><summary>command</summary><code>{_text(command_of(trial))}</code></details>"]
    return f"<tr>{''.join(f'{cell}</td>' for cell in cells)}</tr>"


def _others(trials: Sequence[Trial]) -> str:
    """Return what was skipped and what failed, each with its reason and its command."""
    grid = others_grid(trials)
    return _grid(grid) if grid.rows else "<p>Nothing was skipped, and nothing failed.</p>"


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


def _text(text: str) -> str:
    return escape(printable(text))


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
