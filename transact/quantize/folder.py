"""A quantised model's folder: what llm-compressor leaves out of it, or writes in another way than the export."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from transact.engine.model_folder import copy_companions
from transact.export.folder import GUARD_NAME
from transact.files import publish, read_json, temporary_name, write_json, write_text
from transact.models.model_files import CONFIG, INDEX_NAME, licence_files, shard_names
from transact.quantize.schemes import SCHEMES
from transact.quantize.table import markdown_table, settings_words

CARD, USE, TAG = "README.md", "\n## Use\n", "compressed-tensors"
KEPT = ("Licence", "Cite")  # of what a card says behind its use; that and GGUF are of the unquantised model
LOADING = """
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")  # pip install compressed-tensors
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
"""


def complete(source: Path, target: Path, dtype: str) -> None:
    """Give a folder that llm-compressor wrote what it leaves out of the source's, or writes in another way.

    That is config.json with its rotary settings under the keys of transformers 4 and 5, the tokenizer, the licence, and
    the guard tensor, without which llama.cpp's converter would read rotary factors wrong.
    """
    quantised = read_json(target / CONFIG)["quantization_config"]
    config = read_json(source / CONFIG) | {"quantization_config": quantised, "dtype": dtype, "torch_dtype": dtype}
    write_json(target / CONFIG, config)
    copy_companions(source, target)
    for file in licence_files(source):
        shutil.copyfile(file, target / file.name)
    for name in shard_names(source):
        with safe_open(source / name, framework="pt") as reader:
            if GUARD_NAME in reader.keys():  # noqa: SIM118 - it is no dictionary
                add_tensor(target, GUARD_NAME, reader.get_tensor(GUARD_NAME))


def add_tensor(folder: Path, name: str, tensor: Tensor) -> None:
    """Add a tensor to the first shard of a folder."""
    shard = folder / shard_names(folder)[0]
    temporary = temporary_name(shard)
    save_file(load_file(shard) | {name: tensor}, temporary, metadata={"format": "pt"})
    publish(temporary, shard)
    if (folder / INDEX_NAME).is_file():
        index = read_json(folder / INDEX_NAME)
        index["weight_map"][name] = shard.name
        write_json(folder / INDEX_NAME, index)


QUANTISED = """\
## Quantised to {scheme}

{words}; `lm_head` and the embedding stay in 16 bits. By llm-compressor {version}{calibration}, in the format of \
compressed-tensors: vLLM computes with it; transformers needs `pip install compressed-tensors`, and dequantises the \
weights before it computes.

{table}
{settings}
"""


def write_card(folder: Path, card: str, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the card of a variant: what the card of its model says, then how it was quantised and what that costs.

    Args:
        card: of the model; empty where there is none that may be shown.
        row: the variant's.
        rows: of all variants and of the models, for the table.
    """
    scheme = SCHEMES[row["scheme"]]
    section = QUANTISED.format(
        scheme=row["scheme"],
        words=f"{scheme.words[0].upper()}{scheme.words[1:]}" + (f" ({row['groups']})" if row["groups"] else ""),
        version=row["versions"]["llmcompressor"],
        calibration=", calibrated on the calibration text of the run" if scheme.calibrated else ", without any text",
        table=markdown_table(rows),
        settings=settings_words(rows),
    )
    if not card:
        write_text(folder / CARD, f"# {row['model']}\n\n{section}")
        return
    before, _, after = card.partition(USE)
    kept = [f"## {each}" for each in after.split("\n## ") if each.startswith(KEPT)]
    write_text(folder / CARD, "\n".join([f"{_with_own_metadata(before).rstrip()}\n\n{section}{LOADING}", *kept]))


def _with_own_metadata(card: str) -> str:
    """Return a card without the figures of the unquantised model in its metadata, and with the format's tag."""
    block = REGEX_YAML_BLOCK.search(card)
    found = None if block is None else yaml.safe_load(block.group(2))
    if block is None or not isinstance(found, dict):
        return card
    found.pop("model-index", None)
    found["tags"] = [*(found.get("tags") or []), TAG]
    return f"---\n{yaml.safe_dump(found, sort_keys=False, allow_unicode=True)}---\n{card[block.end() :]}"
