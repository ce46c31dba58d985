"""What is written besides the folder for transformers."""

from __future__ import annotations

from dataclasses import dataclass

from transact.config.setting import setting

GGUF_TYPES = ("none", "f16", "q8_0", "q4_0")


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """What is written besides the folder for transformers."""

    gguf: str = setting("none", choices=GGUF_TYPES)
    """"none", or the type of the weights in a file for llama.cpp beside export/: "f16", "q8_0" or "q4_0"."""
