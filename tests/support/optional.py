"""Libraries that the tests want beside the environment's own: each in a folder of its own, put first on the path.

They are installed once, by pip, into `.cache/` of the checkout, which git ignores.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.support.commands import REPOSITORY, environment

CACHE = REPOSITORY / ".cache"
# The last release of the 4.x series, with the versions of its two companions that it insists on.
LLAMA_CPP = "llama-cpp-python-0.3.36"  # with the llama.cpp that it was released with
CONVERTER = "llama.cpp-converter-0.3.36"
CONVERTER_FILES = re.compile(r"/vendor/llama\.cpp/(convert_hf_to_gguf\.py$|conversion/|gguf-py/gguf/)")
TRANSFORMERS_4 = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.2")


def llama_cpp() -> Path | None:
    """The folder with a build of llama.cpp; None where there is none: it takes a compiler and many minutes."""
    folder = CACHE / LLAMA_CPP
    return folder if folder.is_dir() else None


def stock_converter() -> Path | None:
    """llama.cpp's own script, of the same release; None where `build_llama_cpp` has not put it there."""
    script = CACHE / CONVERTER / "convert_hf_to_gguf.py"
    return script if script.is_file() else None


def build_llama_cpp() -> Path:
    """Compile it, and unpack its converter, unless that was done before. Returns the folder with the build."""
    folder = llama_cpp()
    if folder and stock_converter():
        return folder
    options = ["LLAVA_BUILD", "MTMD_BUILD", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_TOOLS"]
    os.environ["CMAKE_ARGS"] = " ".join(
        f"-D{name}=OFF" for name in (*options, "LLAMA_BUILD_SERVER", "GGML_OPENMP", "GGML_NATIVE")
    )
    os.environ.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    CACHE.mkdir(exist_ok=True)
    name, _, version = LLAMA_CPP.rpartition("-")
    with tempfile.TemporaryDirectory(dir=CACHE) as downloads:
        _pip("download", "--no-deps", "--no-binary", name, "--dest", downloads, f"{name}=={version}")
        (archive,) = Path(downloads).glob("*.tar.gz")
        _unpack_converter(archive)
        return installed(LLAMA_CPP, (str(archive), "diskcache==5.6.3"), seconds=3 * 3600)


def _unpack_converter(archive: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as folder, tarfile.open(archive) as packed:
        wanted = [each for each in packed.getmembers() if CONVERTER_FILES.search(each.name)]
        packed.extractall(folder, wanted, filter="data")
        (source,) = Path(folder).glob("*/vendor/llama.cpp")
        shutil.rmtree(CACHE / CONVERTER, ignore_errors=True)
        source.rename(CACHE / CONVERTER)


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


def _pip(verb: str, *arguments: str, seconds: float = 600) -> None:
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


if __name__ == "__main__":
    print(f"compiling llama.cpp, once, into {CACHE}: this takes a while", flush=True)
    print(build_llama_cpp(), flush=True)
