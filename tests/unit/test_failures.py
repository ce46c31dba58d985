"""What a failure means to a person: the stage, what was short, what to change; and whose failure it is."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tests.support.commands import Workplace
from tests.support.configs import compose_config
from transact.config.run import RunConfig
from transact.engine.memory import MemoryEstimate
from transact.errors import REMEDIES, Failure, RankFailed
from transact.launch.outcome import explain, is_lost_rank


@pytest.fixture
def config(workplace: Workplace) -> RunConfig:
    return compose_config([*workplace.overrides("failing"), f"output_dir={workplace.folder}"])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/tmp/shard.safetensors"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk(error: Exception, config: RunConfig) -> None:
    told = explain(error, "round_01/recover", config, 2)
    assert told.startswith("round_01/recover: the disk is full (")
    assert "GiB free" in told
    assert "the same command goes on" in told


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 123 bytes. Error code 12"),
    ],
)
def test_out_of_memory_names_the_largest_consumer_and_a_remedy(error: Exception, config: RunConfig) -> None:
    told = explain(error, "round_01/recover", config, 2)
    assert told.startswith("round_01/recover: out of memory. The largest consumer is ")
    assert any(remedy in told for remedy in REMEDIES.values())
    assert not is_lost_rank(error)


SETTLED = ["engine.micro_batch_sequences=1", "engine.activation_checkpointing=true"]  # as a run has it by then


def test_what_is_named_is_held_in_that_stage() -> None:
    """Gram matrices are summed in calibration and the passes after it, and a cut model is smaller than its parent."""
    config = compose_config(["+experiment=llama7b_50pct", *SETTLED, "prune.method.gram_gib=100"])
    for stage in ("round_01/calibrate", "round_01/gram"):
        assert "The largest consumer is gram" in explain(MemoryError(), stage, config, 8)
    point = compose_config(["+experiment=llama7b_50pct", *SETTLED, "prune.method.gram_gib=100", "share_dir=shared"])
    assert "gram" not in explain(MemoryError(), "round_01/calibrate", point, 8), "a sweep's have a pass of their own"
    for stage in ("round_00/evaluate", "round_08/recover"):
        told = explain(MemoryError(), stage, config, 8)
        assert "The largest consumer is " in told and "gram" not in told
    first, last = (explain(MemoryError(), f"round_{number:02d}/recover", config, 8) for number in (1, 8))
    assert told_gib(last) < 0.6 * told_gib(first)
    for stage, helps in (("tasks", "eval.task_batch"), ("export", "more memory"), ("round_01/split", "micro_batch")):
        told = explain(MemoryError(), stage, config, 8)
        assert "no estimate" in told and helps in told
    by_gradients = compose_config(["+experiment=llama7b_50pct", *SETTLED, "prune/method=taylor"])
    told = explain(MemoryError(), "round_01/calibrate", by_gradients, 8)
    assert "consumer is activations" in told and "checkpointing" not in told


def told_gib(message: str) -> float:
    return float(message.partition("about ")[2].partition(" GiB")[0])


def test_every_part_of_the_estimate_has_a_remedy() -> None:
    assert {f"memory/{part}" for part in MemoryEstimate.__slots__} <= REMEDIES.keys()


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (
            RuntimeError(
                "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"
            ),
            True,
        ),
        (RuntimeError("NCCL communicator was aborted on rank 0"), True),
        (RankFailed("rank 1 failed: OSError: No space left on device"), True),
        (Failure("recovery came to nothing: gloo, NCCL"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("Connection closed by peer"), False),
    ],
)
def test_whose_failure_it_is(error: Exception, lost: bool) -> None:
    assert is_lost_rank(error) is lost


def test_other_errors_keep_their_name(config: RunConfig) -> None:
    assert explain(KeyError("x"), "export", config, 1) == "export: KeyError: 'x'"
    torn = RuntimeError("first\nsecond\nException raised from f at a.cpp:1 (most recent call first):\nframe #0: f")
    assert explain(torn, "export", config, 1) == "export: RuntimeError: first second"
    assert Path(config.output_dir).is_dir()


def test_a_full_disk_before_there_is_a_run_folder(config: RunConfig) -> None:
    config.output_dir = "/no/such/folder"
    assert "the disk is full" in explain(OSError(errno.ENOSPC, "No space left on device"), "the start", config, 2)


def test_looking_closer_never_fails(config: RunConfig) -> None:
    """The model's folder may be what is gone."""
    config.model.path = "/no/such/model"
    assert explain(MemoryError("no more"), "round_01/gram", config, 2) == "round_01/gram: MemoryError: no more"
