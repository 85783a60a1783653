"""``dcpbench recommend --map``: the answers to many questions at once, context by concurrency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.exits import Exit
from bench.cli.recommend_options import Asked
from bench.cli.recommend_traffic import traffic_of
from bench.cli.screen import draw, emit, say, warn
from bench.errors import UsageError

if TYPE_CHECKING:
    from bench.recommend.grounds import Grounds


def answer_all(
    grounds: Grounds, asked: Asked, notes: Sequence[str], profiles: Mapping[int, Path], *, json: bool
) -> int:
    """Print the map of a model: of the contexts and numbers of requests that were typed, or of those that were measured.

    Args:
        notes: to be told beside it, a sentence each.
        profiles: that were asked, by dcp.

    Raises:
        UsageError: for a map that is too large, or of which nothing tells how large it is.
    """
    from bench.recommend.answer_map import AnswerMap
    from bench.report import advice, answer_map

    if len(grounds.rooms) == 1:
        sentence = advice.leave_off(grounds.shape, grounds.tp)
        if json:
            emit({"model": grounds.shape.name, "tp": grounds.tp, "text": sentence, "cells": [], "contexts": []})
        else:
            say(sentence)
        return Exit.DONE
    contexts, concurrencies = _axes(grounds, asked)
    found = AnswerMap.of(
        grounds, contexts, concurrencies, lambda context, requests: traffic_of(asked, context, requests)
    )
    if json:
        files = {str(dcp): str(path) for dcp, path in profiles.items()}
        emit({**answer_map.to_json(found), "notes": list(notes), "profiles": files})
        return Exit.DONE
    for note in notes:
        warn(note)
    say(answer_map.headline(found))
    say()
    draw(answer_map.cells_grid(found))
    say()
    draw(answer_map.contexts_grid(found))
    return Exit.DONE


def _axes(grounds: Grounds, asked: Asked) -> tuple[list[int], list[int]]:
    from bench.recommend.answer_map import MOST_CELLS, measured_axes

    contexts, concurrencies = asked.contexts, asked.concurrencies
    if not (contexts and concurrencies):
        measured = measured_axes(grounds.known[1].profile, grounds.tp)
        if not all(measured):
            raise UsageError(
                f"no decode of dcp 1 at tp {grounds.tp} was measured here: give --context and --concurrency, as "
                f"--context 8k,32k --concurrency 1,16"
            )
        contexts, concurrencies = contexts or measured[0], concurrencies or measured[1]
    if len(contexts) * len(concurrencies) > MOST_CELLS:
        raise UsageError(
            f"{len(contexts)} contexts by {len(concurrencies)} numbers of requests are more than the {MOST_CELLS} cells of a "
            f"map: give fewer"
        )
    return contexts, concurrencies
