"""Use exported folders as anybody would, with whatever transformers is on the path, and print what was seen.

    python stock_use.py FOLDER OUTPUT [FOLDER OUTPUT ...]

Imports nothing of transact. OUTPUT gets the logits as safetensors; the last line of standard output is a JSON list
with an object for each folder.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

SEEN: list[str] = []
LENGTH = 160  # tokens; the tiny models were made for 128


class _Seen(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "predefined maximum length" not in message:  # it is exceeded on purpose
            SEEN.append(message)


def _watch_warnings() -> None:
    """Everything that a user would see: Python's warnings, and what transformers logs."""
    warnings.showwarning = lambda message, *_: SEEN.append(str(message))
    warnings.simplefilter("always")
    warnings.simplefilter("ignore", DeprecationWarning)  # of the libraries among each other; hidden by default
    warnings.simplefilter("ignore", FutureWarning)
    logging.getLogger("transformers").addHandler(_Seen(logging.WARNING))


def use(folder: Path, output: Path) -> dict[str, Any]:
    import torch
    import transformers
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    SEEN.clear()
    tokens = torch.randint(0, 512, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    prompt = tokens[:, :5]
    logits: dict[str, Any] = {}
    generated: dict[str, list[int]] = {}

    def load(path: Path, dtype: str, attention: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), attn_implementation=attention
        ).eval()

    with torch.no_grad():
        for attention in ("sdpa", "eager"):
            for dtype in ("float32", "bfloat16"):
                model = load(folder, dtype, attention)
                logits[f"{attention} {dtype}"] = model(tokens).logits.float()
            model = load(folder, "float32", attention)
            settings = {"max_new_tokens": 150, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            generated[attention] = model.generate(prompt, **settings)[0].tolist()
        again = output.with_suffix("")
        model.save_pretrained(again)
        logits["saved again"] = load(again, "float32", "sdpa")(tokens).logits
    text = "def main() -> None:"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    save_file({name: value.contiguous() for name, value in logits.items()}, output)
    return {
        "version": transformers.__version__,
        "class": type(model).__name__,
        "warnings": list(SEEN),
        "generated": generated,
        "tokens": tokens[0].tolist(),
    }


if __name__ == "__main__":
    import transformers  # noqa: F401 - before its warnings are watched

    _watch_warnings()
    paths = [Path(each) for each in sys.argv[1:]]
    print(json.dumps([use(folder, output) for folder, output in zip(paths[::2], paths[1::2], strict=True)]))
