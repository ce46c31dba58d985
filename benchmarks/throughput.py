"""Tokens per second of recovery beside a bare DeepSpeed loop and a plain PyTorch loop.

    python -m benchmarks.throughput --processes 2

The three take turns on the same batches within one run, since a machine's speed changes from one minute to the
next; what counts is the ratio of neighbours.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed

from benchmarks.workload import (
    ARCHITECTURES,
    RESULTS,
    environment,
    random_texts,
    relaunch,
    run_config,
    working_folder,
    write_random_model,
    write_result,
)
from transact.config import EngineConfig
from transact.models.llama import read_geometry
from transact.outline import Round, pretraining_round
from transact.runtime.deepspeed_settings import TrainingSettings, deepspeed_settings
from transact.runtime.engine import Engine, import_deepspeed, open_engine
from transact.runtime.process import ProcessGroup, process_group
from transact.runtime.run_folder import RunFolder
from transact.runtime.sharded_weights import optimizer_groups
from transact.stages.job import Job
from transact.stages.recover import Recovery, own_batch, training_settings
from transact.stages.texts import Texts
from transact.tracking.metrics import MetricsLog, read_metrics
from transact.tracking.tracker import Tracker

TARGET = 0.95  # ours / bare
WARM_UP_STEPS = 2  # of every turn: DeepSpeed traces the model anew after a validation

TrainStep = Callable[[list[torch.Tensor]], None]  # one global batch, as this rank's micro-batches of tokens
