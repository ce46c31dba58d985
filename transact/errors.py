"""How a command ends: its errors, the one line that says why, what helps, the exit code, and leaving the process.

Until the first stage begins every ValueError counts as a refusal: pure functions raise nothing else. Classes that carry
data stand beside what raises them, and derive from those here.
"""

from __future__ import annotations

import argparse
import atexit
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NoReturn

DONE = 0
FAILED = 1  # the work failed or was stopped; the same command goes on from the last finished stage
REFUSED = 2  # the request is wrong, and nothing was written; or the model or text is unusable

FROM_BEST_TO_WORST = (DONE, REFUSED, FAILED)


class TransactError(Exception):
    """Base of the errors raised on purpose: the message is one line for the user. code: the command's exit code."""

    code = FAILED


class Refusal(TransactError, ValueError):
    """A request that cannot be met: the same command would end the same way."""

    code = REFUSED


class Failure(TransactError, RuntimeError):
    """A failure of the work itself, not of the request."""


class RankFailed(Failure):
    """The failure of another rank: which one and why. That rank raises its own error, and tells the user."""


class Stopped(TransactError):
    """The end of a job that was asked to stop, with everything saved. asked_by: a signal's name, or another reason."""

    def __init__(self, asked_by: str = "") -> None:
        super().__init__(asked_by)
        self.asked_by = asked_by

    def __str__(self) -> str:
        return f"stopped by {self.asked_by}" if self.asked_by else "stopped"


def exit_code(error: BaseException) -> int:
    """Return the exit code of a command that ends with this error.

    In a SLURM job that a signal stopped it is the code of a process that the signal ended: the batch script must tell a
    stop from a failure, and nothing is written in run.json before the ranks have met.
    """
    if isinstance(error, Stopped) and error.asked_by in signal.Signals.__members__ and "SLURM_JOB_ID" in os.environ:
        return 128 + signal.Signals[error.asked_by].value
    return error.code if isinstance(error, TransactError) else FAILED


def worst(codes: Iterable[int]) -> int:
    """Return the exit code of several ranks, or several points of a sweep, together.

    Failure is the worst, because it leaves work to go on with; the code of a signal counts as a failure.
    """
    return max(codes, default=DONE, key=lambda code: FROM_BEST_TO_WORST.index(code if code <= REFUSED else FAILED))


LONGEST_MESSAGE = 1000  # characters: a value that fills screens helps nobody
LONGEST_REASON = 300  # characters of a library's message inside one of ours
ERROR = "error: "  # the line that says why begins with this
STACK = re.compile(r"Traceback \(most recent call last\)|Exception raised from |frame #\d")  # of Python and of C++


def one_line(reason: object, longest: int = LONGEST_MESSAGE) -> str:
    """Return a text, or what an error says, as one line for the user.

    Line breaks become spaces, what would act on a terminal becomes visible, and what is very long is cut. What an error
    says is its message without stacks, and its cause's. Its class is named where the message alone may say little:
    KeyError('x') says 'x'.
    """
    text = _said(reason) if isinstance(reason, BaseException) else str(reason)
    line = printable(" ".join(text.split()))
    return line if len(line) <= longest else f"{line[:longest]} ..."


def _said(error: BaseException) -> str:
    name, message, cause = type(error).__name__, STACK.split(str(error))[0].strip(), error.__cause__
    is_plain = isinstance(error, TransactError | ValueError) or type(error) in (Exception, OSError)
    if is_plain or getattr(error, "errno", None) is not None:
        said = message or name
    else:
        said = f"{name}: {message}" if message else name
    return said if cause is None or cause is error or str(cause) in said else f"{said} ({_said(cause)})"


def printable(text: str) -> str:
    """Return a text with control characters, and what else would act on a terminal, as escapes.

    Line breaks stay; a tab becomes spaces.
    """
    return "".join(each if each.isprintable() or each == "\n" else _escape(each) for each in text.expandtabs())


def _escape(mark: str) -> str:
    return mark.encode("unicode_escape", "surrogatepass").decode("ascii")


def speaks() -> bool:
    """Return whether this process is the one of all ranks that talks to the user before they have met."""
    own = os.environ.get("RANK") if "WORLD_SIZE" in os.environ else None  # RANK alone is left from another job
    return (own or os.environ.get("SLURM_PROCID", "0")) == "0"  # torchrun's, or a bare srun's


def say_error(reason: object, *more: str) -> None:
    """Say why something ended: in one line on stderr, then in further lines of ours."""
    print("\n".join([f"{ERROR}{one_line(reason)}", *more]), file=sys.stderr, flush=True)


def refuse(reason: object, *, always: bool = False) -> int:
    """Say in one line, once for all ranks, why a request is refused, and return the exit code.

    Args:
        always: say it whichever rank this is.
    """
    if always or speaks():
        say_error(reason)
    return REFUSED


class Parser(argparse.ArgumentParser):
    """A parser of a command's arguments that refuses wrong ones in one line, without its usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise SystemExit(refuse(f"{message}; see {self.prog} --help"))


def fail(reason: object) -> int:
    """Say in one line why the work failed, and return the exit code."""
    say_error(reason)
    return FAILED


# Kind of failure -> what to do. Lack of memory is told apart by what takes most of it, and by the kind of stage where
# that makes a difference. A run accepts these settings when it goes on, unless the text asks for a new run.
REMEDIES = {
    "disk": "free some space, and the same command goes on from here",
    "diverged": (
        "a lower recover.learning_rate or recover.gradient_clipping, in a run of another name, is what usually helps"
    ),
    "SIGKILL": "where memory runs out the system does that",
    "stopped": "the same command goes on from here",
    "died": "the same command goes on",
    "memory": "more memory for each rank",
    "memory/weights": "engine.zero_stage=3 on more ranks",  # stages 1 and 2 keep them whole where only forwards run
    "memory/weights/recover": "more ranks, or engine.zero_stage=3",
    "memory/gathered": "engine.dtype=bfloat16 in a new run",
    "memory/gradients": "more ranks, or engine.zero_stage=3",
    "memory/optimizer": "more ranks, or engine.zero_stage=3",
    "memory/communication": "a smaller engine.reduce_bucket_elements",
    "memory/update": "more ranks",
    "memory/loading": "engine.zero_stage=3 on more ranks",
    "memory/activations": "a smaller engine.micro_batch_sequences",
    "memory/activations/recover": "a smaller engine.micro_batch_sequences, or engine.activation_checkpointing=true",
    "memory/logits": "a smaller engine.micro_batch_sequences",
    "memory/statistics": "ranks with more memory each: every one holds the sums of all layers",
    "memory/gram": "a smaller prune.method.gram_gib",
    "memory/gram/slice": "ranks with more memory each: they do not divide the least squares of a layer",
    "memory/gram/shapes": "ranks with more memory each (each holds all projections of a shape), or uniform shapes",
    "memory/teacher/shapes": "more ranks, or fewer recover.validation_sequences",
    "memory/teacher": "more ranks, or recover.objective=cross_entropy in a new run",
    # Stages whose memory is not estimated:
    "memory/tasks": "a smaller eval.task_batch",
    "memory/split": "a smaller engine.micro_batch_sequences",
    "memory/efficiency": "eval.efficiency.measured=false",
}


def remedy(kind: str) -> str:
    """Return what to do about a kind of failure, or else about the wider kind: for `memory/gram/x` `memory/gram`."""
    while kind not in REMEDIES:
        assert "/" in kind, kind
        kind = kind.rpartition("/")[0]
    return REMEDIES[kind]


def killed_by(number: int) -> str:
    """Return in words which signal ended a process, by the signal's number."""
    name = signal.Signals(number).name
    return f"killed by {name}" + (f" ({remedy(name)})" if name in REMEDIES else "")


def leave_at_interrupt() -> None:
    """Let Ctrl-C end this process with one line until the work handles signals itself: there is nothing to save yet.

    Where the signal is ignored, as in the background of a shell, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)


def interrupted(*_: object) -> NoReturn:
    """End the process after Ctrl-C, whatever it is doing: a module being imported might catch an exception."""
    if speaks():
        os.write(2, b"stopped by SIGINT; the same command goes on with what is finished, or begins\n")
    leave(FAILED, at_once=True)


def leave(code: int, *, at_once: bool = False) -> NoReturn:
    """End the process with this code, whatever native threads are still alive.

    Seen here: when the interpreter tears itself down under live threads of torch, about one run in ten aborts
    ("terminate called without an active exception"), and finished work is reported as failed.

    Args:
        at_once: run no exit handlers and write no buffers, which may hang.
    """
    if not at_once:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # None where the process that started us closed it
                with suppress(OSError):  # gone, as a closed terminal is
                    stream.flush()
    os._exit(code)


def leave_after(seconds: float, code: int) -> threading.Timer:
    """End the process after this time, whatever happens, and return the timer, whose `cancel` prevents it."""
    last_resort = threading.Timer(seconds, leave, [code], {"at_once": True})
    last_resort.daemon = True
    last_resort.start()
    return last_resort
