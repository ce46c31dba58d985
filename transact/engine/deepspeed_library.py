"""DeepSpeed itself. This is the only file that imports it."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from typing import Any


@functools.cache
def import_deepspeed() -> Any:
    """DeepSpeed without its noise, and without the extension that it would compile for 26 seconds."""
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    with contextlib.redirect_stdout(io.StringIO()):
        import deepspeed
        import deepspeed.ops
        import deepspeed.runtime.zero.parameter_offload
        import deepspeed.utils

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed
