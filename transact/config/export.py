"""What is written besides the folder for transformers."""

from __future__ import annotations

from dataclasses import dataclass

from transact.checks import require_choice

GGUF_TYPES = ("none", "f16", "q8_0", "q4_0")


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """What is written besides the folder for transformers."""

    gguf: str = "none"
    """"none", or the type of the weights in a file for llama.cpp beside export/: "f16", "q8_0" or "q4_0"."""

    def __post_init__(self) -> None:
        require_choice("export.gguf", self.gguf, GGUF_TYPES)
