"""A run as one page of HTML: the answer first, then pictures, every trial with the command that repeats it, and the machine.

It needs no network: styles, the script and pictures are inside, and its policy for content lets a browser take nothing else. What
comes out of files, names of models and machines say, stands in it as text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from bench.grid import Column, Grid, printable
from bench.profile.profile import Profile
from bench.record import Environment, Failed, Measured, Skipped, Trial, latest
from bench.report.choices import entries_grid
from bench.report.command import command_of
from bench.report.plot import Drawn, draw_all
from bench.report.table import counted, dcp_of, label_of, micros, notes_of, settings_line, spread

_HERE = Path(__file__).parent
_WIDE = "<div class=wide tabindex=0 role=region aria-label=Table>"
"""Around a table: on a narrow screen it is moved sideways, by keys too."""
WHAT_WORDS_MEAN = (
    "batch: 8q4s32k is eight requests with 4 new tokens each, of 32768 in total. via: the exchange between ranks.",
    "/default: the time over that of what the engine runs by itself. next: the runner-up's time over the chosen one's.",
    "measured: the group ran on as many devices or processes as it has ranks.",
    "simulated: all its ranks ran on one device and were checked; the busiest was timed alone, without the exchange.",
    "warm: caches were not emptied before each repetition. eager: launched by the host, not replayed from a CUDA graph.",
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
        ("answer", "Answer", _answer(profiles)),
        ("pictures", "Pictures", _pictures(last, command)),
        ("trials", "Every case", _measured(last)),
        ("others", "Skipped and failed", _others(last)),
        ("machine", "Where it was measured", _machines(last)),
    ]
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{content}</section>' for name, title, content in sections)
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections)
    devices = ", ".join(dict.fromkeys(_device(trial.environment) for trial in last))
    days = sorted({trial.time[:10] for trial in last})
    about = f"{counted(len(last), 'case')} on {devices}, {days[0]}{f' to {days[-1]}' if len(days) > 1 else ''}"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>dcpbench: {_text(about)}</title><style>{style}</style></head><body>"
        f"<header><h1>Decode context parallel attention</h1>"
        f"<p class=soft>{_text(about)}. Made by <code>{_text(command)}</code>.</p>"
        f"<nav aria-label=Sections><ul>{links}</ul></nav></header><main>{body}</main><script>{script}</script></body></html>\n"
    )


def _answer(profiles: Sequence[Profile]) -> str:
    """Say what was chosen, in a paragraph and in a table for each geometry."""
    entries = [entry for profile in profiles for entry in profile.entries]
    gains = [entry for entry in entries if (entry.ratio_to_default or 1.0) < 1.0]
    if not entries:
        return "<p class=answer>Nothing here was measured, so there is nothing to choose.</p>"
    said = f"Of {counted(len(entries), 'choice')}, none was shown to be faster than the engine's default."
    if gains:
        are = "is" if len(gains) == 1 else "are"
        said = f"Of {counted(len(entries), 'choice')}, {len(gains)} {are} faster than the engine's default."
        best = min(gains, key=lambda entry: entry.ratio_to_default or 1.0)
        said += (
            f" Most so for {best.workload} at dcp {best.layout.dcp}: {settings_line(best.settings)} takes "
            f"{best.ratio_to_default:.0%} of the default's time."
        )
    grids = "".join(_grid(entries_grid(profile)) for profile in profiles)
    words = "".join(f"<li>{_text(line)}</li>" for line in WHAT_WORDS_MEAN)
    return f"<p class=answer>{_text(said)}</p>{grids}<h3>Words</h3><ul class=soft>{words}</ul>"


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
    right = {"tp", "step µs", "95%", "plan µs"}
    head = "".join(
        f"<th scope=col{' class=right' if name in right else ''}><button type=button>{name}</button></th>"
        for name in columns
    )
    rows = "".join(_row(trial, trial.outcome) for trial in trials if isinstance(trial.outcome, Measured))
    notes = "".join(f"<li>{_text(note)}</li>" for note in notes_of(trials))
    return (
        "<div class=controls><label for=filter>Show rows with all of these words</label>"
        '<input id=filter type=search placeholder="16q1s32k fold"><output id=count for=filter aria-live=polite></output></div>'
        f"{_WIDE}<table data-sortable data-filter=filter data-count=count><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div><ul class=soft>{notes}</ul>"
    )


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
    cells += [f"<td>{_text(label_of(trial, outcome))}", f"<td>{_text('; '.join(outcome.flags))}"]
    cells += [f"<td><details><summary>command</summary><code>{_text(command_of(trial))}</code></details>"]
    return f"<tr>{''.join(f'{cell}</td>' for cell in cells)}</tr>"


def _others(trials: Sequence[Trial]) -> str:
    """Return what was skipped and what failed, each with its reason and its command."""
    rows = []
    for trial in trials:
        match trial.outcome:
            case Skipped(reason=reason):
                rows.append((trial, "skipped", reason))
            case Failed(fault=fault, message=message):
                rows.append((trial, "failed", f"{fault}: {message}"))
    if not rows:
        return "<p>Nothing was skipped, and nothing failed.</p>"
    columns = (Column("what"), Column("case"), Column("why"), Column("again"))
    cells = tuple(
        (
            what,
            f"{trial.case.workload} dcp {dcp_of(trial.case)} {settings_line(trial.case.settings)}",
            why,
            command_of(trial),
        )
        for trial, what, why in rows
    )
    return _grid(Grid("", columns, cells))


def _machines(trials: Sequence[Trial]) -> str:
    """Return the fingerprint of every environment, hard fields first."""
    parts = []
    for environment in _environments(trials):
        rows = tuple(
            (name, value) for part in (environment.hard, environment.soft) for name, value in sorted(part.items())
        )
        parts.append(_grid(Grid(_device(environment), (Column("what"), Column("found")), rows)))
    return "".join(parts)


def _environments(trials: Sequence[Trial]) -> Iterator[Environment]:
    seen: list[Environment] = []
    for trial in trials:
        if trial.environment not in seen:
            seen.append(trial.environment)
            yield trial.environment


def _device(environment: Environment) -> str:
    return environment.hard.get("device_name", "an unknown device")


def _grid(grid: Grid) -> str:
    """Return a table of text as one of HTML."""
    classes = [" class=right" if column.right else "" for column in grid.columns]
    head = "".join(
        f"<th scope=col{kind}>{_text(column.heading)}</th>" for column, kind in zip(grid.columns, classes, strict=True)
    )
    rows = "".join(
        f"<tr{' class=best' if index in grid.emphasized else ''}>"
        + "".join(f"<td{kind}>{_text(cell)}</td>" for cell, kind in zip(row, classes, strict=True))
        + "</tr>"
        for index, row in enumerate(grid.rows)
    )
    caption = f"<caption>{_text(grid.title)}</caption>" if grid.title else ""
    below = "".join(f"<p class=soft>{_text(line)}</p>" for line in grid.footnotes)
    return f"{_WIDE}<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{below}"


def _text(text: str) -> str:
    return escape(printable(text))


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
