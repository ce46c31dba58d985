"""Shared fixtures: a workplace with a tiny model and real text."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch

from tests.support.commands import Workplace, make_workplace


def pytest_configure() -> None:
    """Tests under nohup, or in the background of a script, hear a terminal's end and Ctrl-C, and so do their processes.

    One thread for each process of a test: where more threads than cores wait for each other in tiny products, a job of
    eight seconds of processor time takes seventy.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage looks at all of it again."""
    gc.freeze()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """One for each file of tests, since two files may give a run the same name."""
    return make_workplace(tmp_path_factory.mktemp("workplace"))


@pytest.fixture(autouse=True)
def environment_as_before() -> Iterator[None]:
    """A command run inside the test process says there which rank it is: the next test must not believe that."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Whichever tests came before in the same process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command run inside the test process sets up transact's logger: the next test must not inherit that."""
    logger = logging.getLogger("transact")
    before = (logger.propagate, logger.level, list(logger.handlers))
    yield
    logger.propagate, logger.level, logger.handlers = before
