"""GGUF files in K-quants, which llama.cpp's own quantiser makes of one in float16."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from transact.errors import one_line
from transact.export.gguf import write_gguf

# llama.cpp's numbers of the file types (llama.h, llama_ftype).
K_QUANTS = {"q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}
# A process of its own: the library prints a line for every tensor.
QUANTISE = """\
import ctypes, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: it ends with the rank that started it, whatever ends that
from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize
settings = LlamaModelQuantizeParams()
settings.ftype = int(sys.argv[3])
model_quantize(sys.argv[1], sys.argv[2], settings)
"""


def check_quantiser(kind: str) -> None:
    """Raise ValueError if the type needs llama.cpp's quantiser and that is not installed."""
    if kind in K_QUANTS and importlib.util.find_spec("cyllama") is None:
        raise ValueError(f"export.gguf={kind!r} needs the package cyllama: pip install 'transact[gguf,quantise]'")


def write_k_quants(
    folder: Path, target: Path, kind: str, name: str, advance: Callable[[int], object] = lambda weights: None
) -> list[str]:
    """Write the model in `folder` to the file `target`; a float16 file lies beside it meanwhile.

    Args:
        folder, target, name, advance: as in `write_gguf`.
        kind: one of `K_QUANTS`.

    Returns:
        llama.cpp's names of the weights that are in no K-quants, each with its type: their rows do not divide into
        blocks of 256, and another type of about as many bits takes their place, or float16 where 32 does not divide
        them either.

    Raises:
        ValueError, OverflowError: as in `write_gguf`.
        RuntimeError: the quantiser fails; with its last words.
    """
    half = float16_file(target)
    try:
        write_gguf(folder, half, "f16", name, advance)
        command = [sys.executable, "-c", QUANTISE, str(half), str(target), str(K_QUANTS[kind])]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    finally:
        half.unlink(missing_ok=True)
    if done.returncode:
        raise RuntimeError(f"llama.cpp's quantiser failed: {one_line(_reason(done))}")
    return _without_k_quants(target)


def float16_file(target: Path) -> Path:
    """Return the path of what is quantised, which is removed once it is."""
    return target.with_name(f"f16_{target.name}")


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Return why the quantiser ended: the signal, or its own words, which stand before those of Python."""
    if done.returncode < 0:
        return f"{signal.Signals(-done.returncode).name} ended it"
    lines = done.stderr.strip().splitlines() or ["nothing was said"]
    return next((line for line in lines if "failed" in line), lines[-1])


def _without_k_quants(file: Path) -> list[str]:
    import gguf

    types = {each.name: each.tensor_type.name for each in gguf.GGUFReader(file).tensors}
    return [f"{name} ({kind})" for name, kind in types.items() if kind != "F32" and not kind.endswith("_K")]
