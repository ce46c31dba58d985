"""The environments of llm-compressor and vLLM: what they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transact.evaluation.other_python import asked

HERE = Path(__file__).parent
LLM_COMPRESSOR, VLLM = HERE / "in_llmcompressor.py", HERE / "in_vllm.py"
HOW_TO_MAKE = "python -m venv ENVIRONMENT && ENVIRONMENT/bin/pip install llmcompressor==0.14.0"


def llm_compressor_versions(python: Path) -> dict[str, Any]:
    """Return the versions of llm-compressor's environment, and the device that it computes on.

    Raises:
        ValueError: there is no such Python, or it has no llm-compressor.
    """
    found = asked("--python", python, LLM_COMPRESSOR, {"action": "versions"})
    missing = [name for name, version in found["packages"].items() if version is None]
    if missing:
        raise ValueError(f"--python={str(python)!r} has no {missing[0]}: {HOW_TO_MAKE}")
    return found


def vllm_version(python: Path) -> str:
    """Return the version of vLLM in an environment.

    Raises:
        ValueError: there is no such Python, or it has no vLLM.
    """
    found = asked("--vllm", python, VLLM, {"folder": None})["version"]
    if found is None:
        raise ValueError(f"--vllm={str(python)!r} has no vLLM: name the Python of an environment that has it")
    return str(found)
