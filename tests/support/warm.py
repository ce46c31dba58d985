"""Processes that begin with the heavy imports done, which would take seconds of each: one server imports, and forks."""

from __future__ import annotations

import atexit
import importlib.util
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NoReturn, TextIO

from tests.support.ports import free_port
from transact import files

# The first sets the server's environment, which some of the others read when they are imported.
PRELOADED = [
    "tests.support.offline",
    "transact.run",
    "transact.launch.worker",
    "transact.stages.chain",
    "transact.engine.engine",
    "transact.launch.executors",
    "tests.support.heavy",
]


def warm_context() -> ForkServerContext:
    gone = [name for name in PRELOADED if importlib.util.find_spec(name) is None]
    assert not gone, f"these modules do not exist, and the server would pass over them in silence: {gone}"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class WarmProcess:
    """`python -m MODULE`, in a process that forks its ranks as torchrun would start them; used like a Popen of text.

    Args:
        streams: what becomes of stdout and stderr: PIPE, DEVNULL, or STDOUT for the second.
        terminal: path of a terminal, instead of the streams; the command is a child of this process, as of a shell.
    """

    def __init__(
        self,
        arguments: list[str],
        *,
        cwd: Path,
        environment: dict[str, str],
        module: str = "transact.run",
        ranks: int = 1,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.STDOUT,
        start_new_session: bool = False,
        terminal: str | None = None,
        umask: int | None = None,
    ) -> None:
        ends: list[Connection | None] = []
        self.stdout, self.stderr = (_pipe(each, ends) for each in (stdout, stderr))
        if stderr == subprocess.STDOUT:
            ends[1] = ends[0]
        self.args = [module, *arguments]
        self._process: Any = warm_context().Process(
            target=_begin, args=(self.args, ranks, cwd, environment, ends, start_new_session, terminal, umask)
        )
        self._process.start()
        for end in ends:
            if end is not None and not end.closed:
                end.close()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """
        Raises:
            subprocess.TimeoutExpired: it does not end in time.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What is left of stdout and stderr, once all who hold them have ended.

        Raises:
            subprocess.TimeoutExpired: it does not end in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        streams = [stream for stream in (self.stdout, self.stderr) if stream is not None]
        readers = [_Reader(stream) for stream in streams]
        for reader in readers:
            reader.thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        self.wait(None if deadline is None else max(1.0, deadline - time.monotonic()))
        said = {id(reader.stream): "".join(reader.read) for reader in readers}
        return said.get(id(self.stdout), ""), said.get(id(self.stderr), "")


class _Reader:
    """Reads a stream to its end, in a thread: of two streams neither may wait for the other."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.read = stream, list[str]()
        self.thread = threading.Thread(target=lambda: self.read.extend(stream), daemon=True)
        self.thread.start()


def _pipe(kind: int, ends: list[Connection | None]) -> TextIO | None:
    """Our end of a stream; the other is added to `ends`."""
    if kind != subprocess.PIPE:
        ends.append(None)
        return None
    ours, theirs = multiprocessing.Pipe(duplex=False)
    ends.append(theirs)
    stream = os.fdopen(os.dup(ours.fileno()), encoding="utf-8")
    ours.close()
    return stream


def run_warm(
    arguments: list[str], *, cwd: Path, environment: dict[str, str], seconds: float, **options: Any
) -> subprocess.CompletedProcess[str]:
    """A command to its end. options: of WarmProcess.

    Raises:
        subprocess.TimeoutExpired: it does not end in time.
    """
    process = WarmProcess(arguments, cwd=cwd, environment=environment, stderr=subprocess.PIPE, **options)
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    finally:
        process.kill()
    code = process.wait(10)
    return subprocess.CompletedProcess(process.args, code, stdout, stderr)


def _begin(
    module: list[str],
    ranks: int,
    cwd: Path,
    environment: dict[str, str],
    ends: list[Connection | None],
    start_new_session: bool,
    terminal: str | None,
    umask: int | None,
) -> None:
    for descriptor, end in enumerate(ends, start=1):
        if end is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
        else:
            os.dup2(end.fileno(), descriptor)
    for end in ends:
        if end is not None and not end.closed:
            end.close()
    if start_new_session or terminal is not None:
        os.setsid()
    if terminal is not None:
        opened = os.open(terminal, os.O_RDWR)  # that of the session, which has none yet
        for descriptor in range(3):
            os.dup2(opened, descriptor)
        _fork_job()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if umask is not None:
        os.umask(umask)
        files.UMASK = umask  # which it has asked for when it was imported
    if ranks > 1:
        _fork_ranks(ranks)
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    subprocess.Popen = subprocess_handler.Popen = ForkedModule  # type: ignore[misc]
    contexts = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]
    contexts["spawn"] = contexts["fork"]
    _run_as_main(module)


def _fork_job() -> None:
    """Returns in the foreground of the terminal; the process that was here waits, and ends as that one does."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.tcsetpgrp(0, os.getpgrp())
        signal.signal(signal.SIGTTOU, before)
        return
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)


def _fork_ranks(ranks: int) -> None:
    """Returns in each rank alone; the process that was here waits for them, and ends as the worst of them does."""
    group = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= group | {"MASTER_PORT": str(free_port())}
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            return
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    os._exit(max(codes, key=abs) & 0xFF)


class ForkedModule(subprocess.Popen):  # type: ignore[type-arg]
    """`python -m MODULE`, started as a fork of this process, which has its imports; anything else as ever.

    It is a child with a process of its own in every respect but its command line and its first environment, as
    /proc shows them.
    """

    def __init__(self, args: Any, **options: Any) -> None:
        is_module = isinstance(args, list) and args[:1] == [sys.executable] and "-m" in args
        self._module: list[str] = args[args.index("-m") + 1 :] if is_module else []
        super().__init__(args, **options)

    def _execute_child(  # type: ignore[no-untyped-def]
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask, *rest
    ):  # fmt: skip
        pipes = (p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
        if not self._module:
            before = (args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell)
            super()._execute_child(*before, *pipes, restore_signals, gid, gids, uid, umask, *rest)  # type: ignore[misc]
            return
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            new_session = bool(rest[0])
            _become_module(self._module, (p2cread, c2pwrite, errwrite), pass_fds, cwd, env, new_session, umask)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _become_module(
    module: list[str], streams: tuple[int, ...], pass_fds: Any, cwd: Any, env: Any, new_session: bool, umask: int
) -> None:
    """What exec would have done, and then what `python -m` does; never returns."""
    try:
        weakref.finalize._registry.clear()  # type: ignore[attr-defined]  # the parent's temporary folders stay
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        for descriptor, theirs in enumerate(streams):
            if theirs not in (-1, descriptor):
                os.dup2(theirs, descriptor)
        kept = {0, 1, 2, *pass_fds}
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in kept:
                with suppress(OSError):
                    os.close(int(name))
        if new_session:
            os.setsid()
        if umask >= 0:
            os.umask(umask)
        if env is not None:
            os.environ.clear()
            os.environ.update({os.fsdecode(name): os.fsdecode(value) for name, value in env.items()})
        if cwd is not None:
            os.chdir(cwd)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
        _run_as_main(module)
    except BaseException:  # noqa: BLE001 - nothing of this process may go on
        traceback.print_exc()
    finally:
        os._exit(1)


def _run_as_main(module: list[str]) -> NoReturn:
    """What `python -m` does with a module and its arguments."""
    code = 1
    try:
        sys.argv = list(module)
        sys.modules.pop(module[0], None)  # it runs anew, as the main module
        runpy.run_module(module[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - as an interpreter would end
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
