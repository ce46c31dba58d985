"""A thread of each rank that notices ranks which died or hang, while the main thread waits in a collective.

gloo tells a rank at once that another is gone, NCCL only when its timeout is over, and neither says which. So every
rank writes a beat into the process group's key-value store; rank 0 looks at everybody's beat, the others at that of
rank 0. Whoever notices something writes the verdict, which all ranks read and obey: the first one counts.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transact.exit_codes import FAILED

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 20.0  # without a beat: the rank is gone
SUSPICION_SECONDS = 5.0  # the same, once a collective has failed
LEAVE_SECONDS = 5.0  # that the main thread has to leave by itself once there is a verdict
VERDICT = "verdict"


def ignore(message: str) -> None:
    pass


class Watchdog:
    """Attributes: stage: what the rank is at, for messages. stacks: folder for the stacks of ranks that hang; None:
    nothing is written. record_failure: told the verdict before the process is ended from here.

    Args:
        store: a client of the process group's store of its own.
        stall_seconds: without progress in the main thread, after which the rank hangs.
    """

    def __init__(self, store: Any, rank: int, world_size: int, stall_seconds: float) -> None:
        self.stage = "the start"
        self.stacks: Path | None = None
        self.record_failure: Callable[[str], None] = ignore
        self._store = store
        self._rank = rank
        self._stall_seconds = stall_seconds
        self._watched = [other for other in range(world_size) if other != rank and (rank == 0 or other == 0)]
        self._progress = time.monotonic()
        self._silence_seconds = SILENCE_SECONDS
        self._verdict: dict[str, Any] | None = None
        self._has_verdict = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """To be called before a barrier: after it, every rank has a beat."""
        self._beat(0)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def progress(self) -> None:
        """The main thread is alive; it says so at every collective and every piece of work."""
        self._progress = time.monotonic()

    def report(self, message: str) -> None:
        """This rank fails for a reason of its own, which the others are told."""
        self._decide({"rank": self._rank, "kind": "failed", "message": message})

    def verdict(self, seconds: float) -> str | None:
        """What ended the job, waiting for it that long. Asked by a rank whose collective has failed."""
        self._silence_seconds = SUSPICION_SECONDS
        self._has_verdict.wait(seconds)
        return None if self._verdict is None else self._verdict["message"]

    def speaks(self) -> bool:
        """Whether this rank tells the user of the verdict: rank 0 does, unless it is the one that is gone."""
        return self._rank == 0 or self._verdict is None or self._verdict["rank"] == 0

    def _watch(self) -> None:
        heard = dict.fromkeys(self._watched, (b"", time.monotonic()))
        turn, last = 0, time.monotonic()
        while not self._ended.wait(BEAT_SECONDS):
            now, turn = time.monotonic(), turn + 1
            if now - last > SILENCE_SECONDS / 2:  # the whole machine stood still: nobody is to blame
                heard = {rank: (beat, now) for rank, (beat, _) in heard.items()}
                self._progress += now - last
            last = now
            try:
                self._beat(turn)
                self._look(heard, now)
            except Exception as error:  # noqa: BLE001 - whatever the store says when its host is gone
                if self._ended.is_set():
                    return
                self._obey({"rank": 0, "kind": "dead", "message": f"rank 0 died in {self.stage} ({_line(error)})"})
            if self._verdict is not None:
                self._leave(self._verdict)
                return

    def _beat(self, turn: int) -> None:
        self._store.set(f"beat/{self._rank}", str(turn))

    def _look(self, heard: dict[int, tuple[bytes, float]], now: float) -> None:
        """Read the beats and the verdict; make one if there is reason to."""
        if self._store.check([VERDICT]):
            self._obey(json.loads(self._store.get(VERDICT)))
            return
        for rank in self._watched:
            beat = self._store.get(f"beat/{rank}")
            if beat != heard[rank][0]:
                heard[rank] = (beat, now)
            elif now - heard[rank][1] > self._silence_seconds:
                message = f"rank {rank} died in {self.stage}: no sign of life for {self._silence_seconds:.0f} s"
                self._decide({"rank": rank, "kind": "dead", "message": message})
                return
        if now - self._progress > self._stall_seconds:
            message = (
                f"no progress for {self._stall_seconds / 60:g} minutes in {self.stage} (seen by rank {self._rank}): "
                f"what every rank was doing is in {self.stacks}"
            )
            self._decide({"rank": self._rank, "kind": "hang", "message": message})

    def _decide(self, verdict: dict[str, Any]) -> None:
        """Make a verdict known, or take the one that another rank has made before."""
        with contextlib.suppress(Exception):  # the store is gone with rank 0: this rank's own opinion stands
            verdict = json.loads(self._store.compare_set(VERDICT, "", json.dumps(verdict)))
        self._obey(verdict)

    def _obey(self, verdict: dict[str, Any]) -> None:
        self._verdict = self._verdict or verdict
        self._has_verdict.set()

    def _leave(self, verdict: dict[str, Any]) -> None:
        if verdict["kind"] == "hang" and self.stacks is not None:
            self.stacks.mkdir(parents=True, exist_ok=True)
            with (self.stacks / f"rank_{self._rank:05d}.txt").open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        if self._ended.wait(LEAVE_SECONDS):
            return  # the main thread met an error and reports the verdict itself
        if self.speaks():
            print(f"error: {verdict['message']}", file=sys.stderr, flush=True)
        self.record_failure(verdict["message"])
        if verdict["kind"] == "hang":
            time.sleep(LEAVE_SECONDS)  # rank 0 may hold the store, from which the others read
        os._exit(FAILED)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
