"""A worker without torch: answers orders as ``bench.worker`` does, and fails as the case's model name says.

Names: ``dies`` ends the process by a signal, ``leaves`` with an exit status, ``hangs`` never answers, ``poisoned`` says that
it is of no further use, ``breaks`` answers that it failed while all others wait for it; a digit behind the word is the rank
that does it, else all do.
The first argument is a folder in which every worker leaves a file named for its process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from bench.orders import REPLY_VARIABLE


def misbehave(word: str) -> None:
    """Do what a name says."""
    match word:
        case "dies":
            os.write(1, b"a last word on the way out\n")
            os.kill(os.getpid(), signal.SIGKILL)
        case "leaves":
            sys.exit(7)
        case "hangs":
            threading.Event().wait()


def answer(order: dict[str, Any], rank: int) -> dict[str, Any]:
    """Return the answer to an order: every case is skipped, the reason its model's name."""
    if order["do"] == "probe":
        return {"probe": {"ranks": int(os.environ["WORLD_SIZE"]), "kernels": {}}}
    name = order["case"]["shape"]["name"]
    word, which = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
    if word == "breaks" and int(which) != rank:
        misbehave("hangs")
    if not which or int(which) == rank:
        misbehave(word)
    if order["do"] == "verify" and word == "right":
        check = {"rows": 1, "out_error": 0.0, "out_budget": 1.0, "lse_error": 0.0, "lse_budget": 1.0}
        return {"outcome": {"check": check, "apart": None}, "ranks": 1, "poisoned": False}
    outcome = {"kind": "skipped", "reason": name}
    if word in ("poisoned", "breaks"):
        outcome = {"kind": "failed", "fault": "error", "message": name, "traceback": "where it happened"}
    return {"outcome": outcome, "ranks": 1, "poisoned": word == "poisoned"}


def main() -> None:
    rank = int(os.environ["RANK"])
    (Path(sys.argv[1]) / str(os.getpid())).touch()
    if len(sys.argv) > 2:
        misbehave(sys.argv[2])
    os.write(1, b"noise on the standard output is no answer\n")
    with os.fdopen(int(os.environ[REPLY_VARIABLE]), "w") as replies:
        print(json.dumps({"ready": rank}), file=replies, flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line), rank)), file=replies, flush=True)


if __name__ == "__main__":
    main()
