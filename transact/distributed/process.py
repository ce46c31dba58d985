"""The process group: which rank this is, and the few collectives that the stages use."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as distributed

from transact.distributed.environment import environment_local_rank, environment_rank, environment_world_size
from transact.distributed.rendezvous import RUNNING, Background, complete_environment, job_token, meet, own_part
from transact.distributed.signals import Interruption
from transact.distributed.watchdog import Watchdog
from transact.errors import RankFailed, Stopped, one_line


def check_device(requested: str) -> None:
    """Raise ValueError unless this rank has the device that `engine.device` asks for, and no other rank has it."""
    if requested == "cpu":
        return
    count, local_rank = torch.cuda.device_count() if torch.cuda.is_available() else 0, environment_local_rank()
    if requested == "cuda" and count == 0:
        raise ValueError("engine.device='cuda' is not allowed here: torch sees no GPU; it must be cpu or auto")
    if not 0 < count <= local_rank:
        return
    # Ranks of launch=local and of torchrun see all GPUs of the machine. Elsewhere each may be shown its own, from 0 on.
    is_shown_one = count == 1 and "CUDA_VISIBLE_DEVICES" in os.environ
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and not is_shown_one
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        asked = f"launch.processes={environment_world_size()}"
    elif by_torchrun or (requested == "cuda" and count > 1):
        asked = f"rank {local_rank} of this machine"
    else:
        return
    raise ValueError(
        f"{asked} is not allowed on {count} GPU(s), of which each takes one rank: there must be {count} at most, or "
        "engine.device=cpu"
    )


def rank_device(requested: str, local_rank: int) -> torch.device:
    """Return the device of this process, and set it in torch and for DeepSpeed, with its precision and allocator."""
    # Images with TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 round the factors of float32 products to 10 bits.
    torch.set_float32_matmul_precision("highest")
    if requested != "cpu":
        set_allocator(os.environ)  # before CUDA starts, which reads it once
    use_cuda = torch.cuda.is_available() if requested == "auto" else requested == "cuda"
    if not use_cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        return torch.device("cpu")
    index = local_rank % torch.cuda.device_count()  # where each rank sees its own GPU alone, that is number 0
    os.environ["LOCAL_RANK"] = str(index)  # DeepSpeed's device; the rank is `ProcessGroup.local_rank`
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def set_allocator(environ: MutableMapping[str, str]) -> None:
    """Let segments of GPU memory grow, unless the user configured the allocator.

    ZeRO-3 gathers layers of several sizes while others are freed: with segments of fixed size the free memory ends up
    in pieces, none of which is large enough.
    """
    if not any(environ.get(name) for name in ALLOCATOR_SETTINGS):
        environ[ALLOCATOR_SETTINGS[0]] = "expandable_segments:True"


def own_cores() -> tuple[str, list[int]]:
    """Return this machine's name and the cores that this process may use."""
    return platform.node(), sorted(os.sched_getaffinity(0))


def share_cores(rank: int, cores: Sequence[tuple[str, Sequence[int]]]) -> None:
    """Use this rank's share of the cores, unless the user said otherwise: of each core, one part for each rank on it.

    A launcher may bind every rank to cores of its own, as SLURM does, or none, as torchrun does.

    Args:
        cores: `own_cores` of every rank.
    """
    machine, own = cores[rank]
    ranks_on = Counter(core for other, theirs in cores if other == machine for core in theirs)
    threads = max(1, int(sum(Fraction(1, ranks_on[core]) for core in own)))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # of tokenizers, which reads it when it first works


Result = TypeVar("Result")

ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the older name

GRACE = timedelta(minutes=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessGroup:
    """One rank's view of the running job."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    interruption: Interruption
    watchdog: Watchdog
    store: Any  # of torch, in which `board` has its part

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def _exchange(self, collective: Callable[..., Any], *given: Any, is_progress: bool = True, **named: Any) -> None:
        """Call a collective of torch, and report progress to the watchdog before and after; all collectives use this.

        is_progress: False where the main thread of rank 0 only waits with the others: its work is judged elsewhere.
        """
        if is_progress:
            self.watchdog.progress()
        collective(*given, **named)
        if is_progress:
            self.watchdog.progress()

    def barrier(self) -> None:
        """Wait until all ranks are here (collective)."""
        # An all-reduce of a CPU tensor uses gloo on every machine, whatever the GPUs are doing.
        self.sum(torch.zeros(1))

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all ranks in place (collective); the device of the tensor chooses gloo or NCCL."""
        self._exchange(distributed.all_reduce, tensor, op=distributed.ReduceOp.SUM)
        return tensor

    def sum_to(self, rank: int, tensor: torch.Tensor) -> None:
        """Sum a tensor in place on `rank` (collective); on the others its content is undefined afterwards."""
        self._exchange(distributed.reduce, tensor, dst=rank, op=distributed.ReduceOp.SUM)

    def maxima(self, *values: float) -> list[float]:
        """Return the largest of all ranks for each value (collective)."""
        tensor = torch.tensor(values, dtype=torch.float64)
        self._exchange(distributed.all_reduce, tensor, op=distributed.ReduceOp.MAX)
        return [float(value) for value in tensor.tolist()]

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's plain Python value on every rank (collective)."""
        box = [value]
        self._exchange(distributed.broadcast_object_list, box, src=0, device=torch.device("cpu"))
        return box[0]

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set on any rank (collective)."""
        tensor = torch.tensor(flags, dtype=torch.uint8)
        self._exchange(distributed.all_reduce, tensor, op=distributed.ReduceOp.MAX)
        return [bool(flag) for flag in tensor.tolist()]

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether this rank was asked to stop; the others may not know yet."""
        return self.interruption.asked_by is not None

    def stop_if_asked(self) -> None:
        """Stop all ranks if any was asked to stop.

        Collective: between two pieces of work that need not be saved.

        Raises:
            Stopped: on every rank, when any was asked to stop.
        """
        if self.any(self.is_asked_to_stop)[0]:
            self.stop()

    def turn(self) -> None:
        """Report a finished piece of work to the watchdog, and stop all ranks if any was asked to stop.

        Collective in the main thread: every rank calls it equally often, whatever its share of the work is. In a
        thread of `on_main`, which handles signals itself, and inside `interruption.deferred()` it only reports.

        Raises:
            Stopped: on every rank, when any was asked to stop.
        """
        self.watchdog.progress()
        if threading.current_thread() is threading.main_thread() and not self.interruption.is_deferred:
            self.stop_if_asked()

    def stop(self) -> NoReturn:
        """Raise Stopped with what asked for it (collective: all ranks call this, once they have agreed)."""
        names = [name for name in self.gather(self.interruption.asked_by) if name]
        self.watchdog.end()  # from here on a rank that is gone has left, not died
        with suppress(RuntimeError):
            self.barrier()
        raise Stopped(names[0] if names else "")

    def shared_out(self, count: int) -> range:
        """Return this rank's numbers when 0 to count - 1 are dealt out in turn."""
        return range(self.rank, count, self.world_size)

    def turns(self, count: int) -> Iterator[int | None]:
        """Yield the numbers of `shared_out`, equally often on every rank: None in a last turn that has none for it."""
        for first in range(0, count, self.world_size):
            yield first + self.rank if first + self.rank < count else None

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's plain Python value on every rank, in the order of ranks (collective)."""
        values: list[Any] = [None] * self.world_size
        self._exchange(distributed.all_gather_object, values, value)
        return values

    def board(self, name: str) -> Any:
        """Return a `torch.distributed.Store` that the ranks share under this name, for use in one thread of each."""
        return own_part(self.store.clone(), f"board/{name}")

    def everywhere(self, work: Callable[[], Result]) -> list[Result]:
        """Run work that may fail (it writes files, say) on every rank; return all results, in the order of ranks.

        Collective.

        Raises:
            Exception: the work's own, on the ranks where it failed.
            ValueError: on the others, once all have ended, when the work raised one.
            RankFailed: on the others, when it raised anything else.
        """
        result, error = None, None
        try:
            result = work()
        except Exception as own:  # noqa: BLE001 - raised again once the other ranks know
            error = own
        return self._results(result, error)

    def on_all(self, work: Callable[[], Result], *, may_be_left: bool = False) -> list[Result]:
        """Do what `everywhere` does in a thread of each rank; meanwhile all exchange a heartbeat (collective).

        Args:
            may_be_left: as in `on_main`.

        Raises:
            Stopped: on every rank, when any was asked to stop meanwhile.
            Exception: as `everywhere`.
        """
        outcome = Background(work)
        self._beat_until_done(outcome, may_be_left=may_be_left)
        return self._results(outcome.result, outcome.error)

    def _beat_until_done(self, outcome: Background | None, *, may_be_left: bool) -> None:
        """Exchange a heartbeat until no rank's work goes on; None: this rank has none (collective).

        Neither does the timeout of a collective end long work, nor does a dead rank leave the others waiting.

        Raises:
            Stopped: on every rank, when any was asked to stop meanwhile and the work may be left.
        """
        # Work that may not be left reports its own progress to its rank's watchdog.
        waits = may_be_left or outcome is None
        pause = 0.005
        while True:
            is_running = outcome is not None and outcome.state == RUNNING
            flags = torch.tensor([is_running, may_be_left and self.is_asked_to_stop], dtype=torch.uint8)
            self._exchange(distributed.all_reduce, flags, op=distributed.ReduceOp.MAX, is_progress=waits)
            is_running, asked = flags.tolist()
            if not is_running:
                break
            if asked:
                self.stop()
            if outcome is not None and outcome.state == RUNNING:
                outcome.thread.join(pause)  # a lone rank goes on as soon as the work is done
            else:
                time.sleep(pause)
            pause = min(2 * pause, 0.25)
        if outcome is not None:
            outcome.thread.join()

    def _results(self, result: Any, error: BaseException | None) -> list[Any]:
        """Return every rank's result, or raise what `everywhere` says (collective)."""
        refused = isinstance(error, ValueError)
        message = None if error is None else one_line(error)
        outcomes = self.gather((result, message, refused))
        if error is not None:
            raise error
        for rank, (_, message, refused) in enumerate(outcomes):
            if message is not None:
                raise _error_of(rank, message, refused=refused)
        return [value for value, _, _ in outcomes]

    def on_main(self, work: Callable[[], Result], *, may_be_left: bool = False) -> Result:
        """Run work on rank 0 while the others wait, and return its result on every rank (collective).

        The work runs in a thread; meanwhile all ranks exchange a heartbeat.

        Args:
            may_be_left: Whether the work, which goes on in its thread, may be left unfinished when the job must stop.
                It may then take any time; other work counts as hanging when it reports no progress.

        Raises:
            Stopped: on every rank, when any was asked to stop meanwhile.
            ValueError: on every rank, when the work raised one on rank 0.
            RankFailed: on the other ranks, when the work failed on rank 0 (which raises its own error).
        """
        outcome = Background(work) if self.is_main else None
        self._beat_until_done(outcome, may_be_left=may_be_left)
        error = outcome.error if outcome else None
        result, message, refused = self.broadcast(
            (outcome.result, None if error is None else one_line(error), isinstance(error, ValueError))
            if outcome
            else None
        )
        if error is not None:
            raise error
        if message is not None:
            raise _error_of(0, message, refused=refused)
        return result


def _error_of(rank: int, message: str, *, refused: bool) -> Exception:
    """Return the error that the others raise when one rank failed. refused: by a ValueError, which is the user's."""
    return ValueError(message) if refused else RankFailed(f"rank {rank} failed: {message}")


@contextmanager
def process_group(
    device: str, timeout_minutes: float, interruption: Interruption | None = None, refusal: str | None = None
) -> Iterator[ProcessGroup]:
    """Join the group that the launcher described in RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.

    Without these variables the group is this one process. On a GPU machine CPU tensors travel over
    gloo and GPU tensors over NCCL. A rank that fails leaves without a barrier: its peers see the
    broken connection at once instead of waiting for the timeout.

    Args:
        timeout_minutes: time without progress after which a rank counts as hanging.
        refusal: why this rank, having looked at the request, cannot meet it; None if it can.

    Raises:
        Refusal: on every rank, before anything else, when one of them refuses.
        Stopped: this rank was asked to stop while it waited for the others.
        TimeoutError: some ranks did not arrive in time.
    """
    rank, world_size, local_rank = environment_rank(), environment_world_size(), environment_local_rank()
    complete_environment()
    interruption = interruption or Interruption()
    store = meet(rank, world_size, interruption, refusal)
    watchdog = Watchdog(
        own_part(store.clone(), "watchdog"), rank, world_size, 60 * timeout_minutes, job_token(world_size)
    )
    watchdog.when_asked = interruption.hear
    interruption.tell_others = watchdog.ask
    watchdog.start()
    try:
        group = _join(device, store, rank, world_size, local_rank, watchdog, interruption)
    except Exception as error:
        watchdog.report(f"rank {rank} failed in {watchdog.stage}: {one_line(error)}")
        watchdog.end()
        raise
    yield group
    group.barrier()
    watchdog.end()
    group.barrier()  # rank 0 may serve the store, which all watchdogs use to the end
    distributed.destroy_process_group()


def _join(
    device: str,
    store: Any,
    rank: int,
    world_size: int,
    local_rank: int,
    watchdog: Watchdog,
    interruption: Interruption,
) -> ProcessGroup:
    chosen = rank_device(device, local_rank)
    first = own_part(store, "start").compare_set("device", "", chosen.type).decode()
    if first != chosen.type:
        raise RuntimeError(f"engine.device={device} is {chosen.type} here, but {first} on another rank")
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
        store=own_part(store, "group"),
        rank=rank,
        world_size=world_size,
        # Longer than the watchdog's patience: the watchdog knows more about what hangs.
        timeout=watchdog.patience + GRACE,
    )
    group = ProcessGroup(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        device=chosen,
        interruption=interruption,
        watchdog=watchdog,
        store=store,
    )
    share_cores(rank, group.gather(own_cores()))
    return group
