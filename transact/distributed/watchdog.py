"""Threads of each rank that notice ranks which died or hang, while the main thread waits in a collective.

gloo tells a rank at once that another is gone, NCCL only when its timeout is over, and neither says which. So every
rank writes a beat into the process group's key-value store; rank 0 looks at every rank's beat, the others at that of
rank 0. A rank that notices something writes a verdict, which all ranks read and obey: the first one counts.

One thread talks to the store and may wait there for ever, when its host is lost without an error. Another one judges.
"""

from __future__ import annotations

import faulthandler
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from transact.distributed.rendezvous import Background, sign, signed_text
from transact.errors import FAILED, leave, leave_after, one_line, say_error

BEAT_SECONDS = 1.0
RECORD_SECONDS = 10.0  # for recording a verdict; then the user is told even so
SILENCE_SECONDS = 20.0  # without a beat: the rank is gone
SUSPICION_SECONDS = 5.0  # the same, once a collective has failed
LEAVE_SECONDS = 5.0  # for the main thread to leave by itself once there is a verdict
LAST_SECONDS = 30.0  # for stacks and run.json on a disk that hangs too; then the process ends without them
VERDICT = "verdict"
ASKED = "asked"


def ignore(message: str) -> None:
    """Ignore a message: the default of a callback."""


class Watchdog:
    """The thread of a rank that judges whether ranks died or hang, and ends the process after a verdict.

    Attributes:
        stage: what the rank is at, for messages.
        stacks: folder for the stacks of ranks that hang; None: nothing is written.
        record_failure: called with the verdict before the process is ended from here; returns False where another rank
            has recorded one before, and nothing is left to say.
        tell: tells the user the verdict, on one rank.
        when_asked: called with the reason why another rank was asked to stop.

    Args:
        store: a client of the process group's store, used here alone.
        stall_seconds: time without progress in the main thread, after which the rank hangs.
        token: what verdicts are signed with; those of others are ignored.
    """

    def __init__(self, store: Any, rank: int, world_size: int, stall_seconds: float, token: bytes = b"") -> None:
        self.stage = "the start"
        self.stacks: Path | None = None
        self.record_failure: Callable[[str], bool | None] = ignore
        self.when_asked: Callable[[str], None] = ignore
        self.tell: Callable[[str], None] = say_error
        self._rank = rank
        self._stall_seconds = stall_seconds
        watched = [other for other in range(world_size) if other != rank and (rank == 0 or other == 0)]
        self._beats = Beats(store, rank, watched, token, lambda name: self.when_asked(name))
        self._stood_still = (0.0, float("-inf"))  # how long this process was suspended, and until when
        self._progress = time.monotonic()
        self._silence_seconds = SILENCE_SECONDS
        self._verdict: dict[str, Any] | None = None
        self._has_verdict = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._progress = time.monotonic()
        self._beats.start()
        self._thread.start()

    @property
    def patience(self) -> timedelta:
        return timedelta(seconds=self._stall_seconds)

    def end(self) -> None:
        """Stop watching; what was reported is then known to the others, if the store answers."""
        self._ended.set()
        self._thread.join()
        self._beats.end()
        if self._rank == 0 and self._beats.verdict is not None:
            time.sleep(2 * BEAT_SECONDS)  # the others read it from a store that may end with this rank

    def progress(self) -> None:
        """Record that the main thread is alive; it calls this at every collective and every piece of work."""
        self._progress = time.monotonic()

    def report(self, message: str) -> None:
        """Tell the others that this rank fails, for a reason of its own."""
        self._beats.propose({"rank": self._rank, "kind": "failed", "message": message})

    def ask(self, name: str) -> None:
        """Tell the others that this rank was asked to stop; all stop together at the next turn."""
        self._beats.ask(name)

    def verdict(self, seconds: float) -> str | None:
        """Return what ended the job, or None if it is not known in time; for a rank whose collective has failed."""
        self._silence_seconds = SUSPICION_SECONDS
        self._has_verdict.wait(seconds)
        return None if self._verdict is None else self._verdict["message"]

    def speaks(self) -> bool:
        """Return whether this rank tells the user the verdict: rank 0 does, or every rank if rank 0 is the one gone."""
        return self._rank == 0 or self._verdict is None or self._verdict["rank"] == 0

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(BEAT_SECONDS):
            now = time.monotonic()
            if now - last > SILENCE_SECONDS / 2:  # this process or the whole machine stood still: nobody is to blame
                self._beats.forgive(now)
                self._progress += now - last
                self._stood_still = (now - last, now)
            last = now
            self._verdict = self._beats.verdict or self._judge(now)
            if self._verdict is not None:
                self._has_verdict.set()
                self._leave(self._verdict)
                return

    def _judge(self, now: float) -> dict[str, Any] | None:
        """Return this rank's verdict, or None while all is well or while the others are asked whether they saw more."""
        seconds = self._silence_seconds
        if self._beats.error is not None or now - self._beats.answered > seconds:
            why = self._beats.error or f"no answer for {seconds:.0f} s"
            lost = "rank 0 died" if self._rank != 0 else "the launcher's store was lost"
            return self._own_fault(now) or self._opinion("dead", 0, f"{lost} in {self.stage} ({why})")
        for rank, heard in self._beats.heard.items():
            if now - heard > seconds:
                message = f"rank {rank} died in {self.stage}: no sign of life for {seconds:.0f} s"
                self._beats.propose(self._own_fault(now) or self._opinion("dead", rank, message))
                return None
        if now - self._progress > self._stall_seconds:
            message = (
                f"no progress for {self._stall_seconds / 60:g} minutes in {self.stage} (seen by rank {self._rank}): "
                f"what every rank was doing is in {self.stacks}"
            )
            self._beats.propose(self._opinion("hang", self._rank, message))
        return None

    def _own_fault(self, now: float) -> dict[str, Any] | None:
        """Return a verdict on this rank if it was suspended for so long that the others have left without it."""
        seconds, until = self._stood_still
        if seconds < SILENCE_SECONDS or now - until > 2 * SILENCE_SECONDS:
            return None
        message = f"rank {self._rank} died in {self.stage}: no sign of life for {seconds:.0f} s (it was suspended)"
        return self._opinion("dead", self._rank, message)

    @staticmethod
    def _opinion(kind: str, rank: int, message: str) -> dict[str, Any]:
        return {"rank": rank, "kind": kind, "message": message}

    def _leave(self, verdict: dict[str, Any]) -> None:
        """End the process, come what may, unless the main thread does so itself."""
        last_resort = leave_after(LEAVE_SECONDS + LAST_SECONDS, FAILED)
        is_needed = True
        try:
            if verdict["kind"] == "hang" and self.stacks is not None:
                with suppress(OSError):  # a full disk must not silence the verdict
                    self.stacks.mkdir(parents=True, exist_ok=True)
                    with (self.stacks / f"rank_{self._rank:05d}.txt").open("w", encoding="utf-8") as file:
                        faulthandler.dump_traceback(file, all_threads=True)
            is_needed = not self._ended.wait(LEAVE_SECONDS)
            if not is_needed:
                last_resort.cancel()  # the main thread met an error and reports the verdict itself
                return
            recording = Background(lambda: self.record_failure(verdict["message"]))
            recording.thread.join(RECORD_SECONDS)
            if self.speaks() and recording.result is not False:
                self.tell(verdict["message"])
            if verdict["kind"] == "hang":
                time.sleep(LEAVE_SECONDS)  # rank 0 may serve the store, from which the others read
        finally:
            if is_needed:
                leave(FAILED, at_once=True)


class Beats:
    """The thread that talks to the store: it beats, reads the beats of others, and exchanges verdicts.

    Attributes, for other threads to read:
        heard: when each watched rank last beat, in seconds of `time.monotonic`.
        answered: when the store last answered, in the same seconds.
        error: what the store says when its host is gone.
        verdict: the job's, once there is one.

    Args:
        when_asked: called with the reason why a rank was asked to stop.
    """

    def __init__(
        self, store: Any, rank: int, watched: list[int], token: bytes, when_asked: Callable[[str], None]
    ) -> None:
        now = time.monotonic()
        self.heard = dict.fromkeys(watched, now)
        self.answered = now
        self.error: str | None = None
        self.verdict: dict[str, Any] | None = None
        self._asked: str | None = None
        self._when_asked = when_asked
        self._token = token
        self._store = store
        self._rank = rank
        self._seen = dict.fromkeys(watched, b"")
        self._proposal: dict[str, Any] | None = None
        self._proposed = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._talk, name="watchdog beats", daemon=True)

    def start(self) -> None:
        self.forgive(time.monotonic())
        self._thread.start()

    def end(self) -> None:
        """Stop using the store; a thread to which it does not answer is left behind."""
        self._ended.set()
        self._proposed.set()
        self._thread.join(SUSPICION_SECONDS)

    def forgive(self, now: float) -> None:
        """Count the silence of the ranks and of the store from `now` on."""
        self.heard = dict.fromkeys(self.heard, now)
        self.answered = now

    def propose(self, verdict: dict[str, Any]) -> None:
        """Make a verdict known; the first of all ranks' counts."""
        self._proposal = self._proposal or verdict
        self._proposed.set()

    def ask(self, name: str) -> None:
        """Tell the others that this rank was asked to stop; the first reason of all counts."""
        self._asked = name
        self._proposed.set()

    def _talk(self) -> None:
        turn = 0
        while self.verdict is None and (self._proposal is not None or not self._ended.is_set()):
            turn += 1
            try:
                self._beat(turn)
                self._listen()
            except Exception as error:  # noqa: BLE001 - whatever the store says when its host is gone
                self.error = one_line(error)
                self.verdict = self._proposal  # this rank's own opinion stands
                return
            self.answered = time.monotonic()
            if self._proposal is None or self.verdict is not None:
                self._proposed.wait(BEAT_SECONDS)
                if self._proposal is None:
                    self._proposed.clear()  # `ask` had set it

    def _beat(self, turn: int) -> None:
        self._store.set(f"beat/{self._rank}", str(turn))

    def _listen(self) -> None:
        proposal = None if self._proposal is None else json.dumps(self._proposal)
        verdict = self._agreed(VERDICT, proposal)
        self.verdict = None if verdict is None else json.loads(verdict)
        asked = self._agreed(ASKED, self._asked)
        if asked is not None:
            self._when_asked(asked)
        for rank in self.heard:
            key = f"beat/{rank}"
            if not self._store.check([key]):
                continue  # it has not started yet, or never will
            beat = self._store.get(key)
            if beat != self._seen[rank]:
                self._seen[rank] = beat
                self.heard[rank] = time.monotonic()

    def _agreed(self, key: str, own: str | None) -> str | None:
        """Return what the first rank said under a key; `own` where that is this one.

        A value that no rank has signed does not count, and is replaced by one that a rank has signed.
        """
        found = self._store.get(key) if self._store.check([key]) else b""
        said = signed_text(self._token, key, found)
        if said is not None or own is None:
            return said
        if found:
            self._store.delete_key(key)
        return signed_text(self._token, key, self._store.compare_set(key, "", sign(self._token, key, own)))
