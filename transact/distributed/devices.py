"""What a rank computes on: its device, and its share of the machine's cores."""

from __future__ import annotations

import os

import torch

from transact.distributed.environment import environment_local_rank


def check_device(requested: str) -> None:
    """This rank has what `engine.device` asks for.

    Raises:
        ValueError: it has not.
    """
    if requested != "cuda":
        return
    count, local_rank = torch.cuda.device_count(), environment_local_rank()
    if count == 0 or not torch.cuda.is_available():
        raise ValueError("engine.device='cuda' is not allowed here: torch sees no GPU; it must be cpu or auto")
    if 1 < count <= local_rank:  # where each rank is shown its own GPU alone, that is number 0
        raise ValueError(
            f"engine.device='cuda' is not allowed for rank {local_rank} of this machine: it has {count} GPUs"
        )


def rank_device(requested: str, local_rank: int) -> torch.device:
    """The device of this process, which torch and DeepSpeed are told as well."""
    use_cuda = torch.cuda.is_available() if requested == "auto" else requested == "cuda"
    if not use_cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        return torch.device("cpu")
    index = local_rank % torch.cuda.device_count()  # where each rank is shown its own GPU alone, that is number 0
    os.environ["LOCAL_RANK"] = str(index)  # which DeepSpeed takes for the device; `ProcessGroup.local_rank` is the rank
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def share_cores() -> None:
    """Share the cores of a machine between its ranks, unless the user said otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
