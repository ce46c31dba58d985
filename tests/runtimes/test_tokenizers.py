"""llama.cpp splits text into the tokens of transformers: by those of SmolLM2 and Llama 3, and a sentencepiece one."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from benchmarks.smollm2 import smollm2_folder
from tests.support.exported import random_selection, slice_folder
from tests.support.llama_cpp_use import ask
from tests.support.optional import CACHE, installed
from tests.support.sentencepiece_tokenizer import train_sentencepiece
from tests.support.tiny import write_model, write_text_files
from transact.export.folder import write_export
from transact.export.gguf import write_gguf
from transact.models.model_files import COMPANION_FILES

pytestmark = pytest.mark.runtimes

LINES = 10_000
# Whose wheel has the file of Llama 3's ranks, and what reads that file.
LLAMA_3 = ("llama-models==0.3.0", "tiktoken==0.14.0")
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_smollm2(folder: Path) -> None:
    AutoTokenizer.from_pretrained(smollm2_folder(CACHE)).save_pretrained(folder)


def write_llama3(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = installed("llama-models-0.3.0", LLAMA_3)
    monkeypatch.syspath_prepend(str(packages))
    ranks = packages / "llama_models" / "llama3" / "tokenizer.model"
    special = [f"<|reserved_special_token_{number}|>" for number in range(256)]
    converted = TikTokenConverter(str(ranks), pattern=SPLIT, extra_special_tokens=special).converted()
    PreTrainedTokenizerFast(tokenizer_object=converted, eos_token=special[1]).save_pretrained(folder)


def write_sentencepiece(folder: Path) -> None:
    """As the files of Llama 2 have it: a mark before the text, whatever the text begins with.

    What transformers 5 makes of a tokenizer.model leaves the mark out before a space, where sentencepiece has it.
    """
    train_sentencepiece(folder, write_text_files(folder / "text")[0])
    file = folder / "tokenizer.json"
    described = json.loads(file.read_text(encoding="utf-8"))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    described["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    described["pre_tokenizer"] = None
    file.write_text(json.dumps(described), encoding="utf-8")
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_file=str(file), **named).save_pretrained(folder)


def lines_of_text() -> list[str]:
    """Python's sources line by line, a thousand characters of every script, digits, and spaces of every kind."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        lines = path.read_text(encoding="utf-8", errors="ignore").split("\n")
        found += [line for line in lines if line and "\x00" not in line]
        if len(found) > 60 * LINES:
            break
    sources = found[:: len(found) // (LINES - 1200)][: LINES - 1200]
    assigned = [chr(code) for code in range(0x20, 0x2FA20) if chr(code).isprintable()]
    scripts = ["".join(assigned[start : start + 30]) for start in range(0, 30 * 1000, 30)]
    numbers = [
        f"  {number * 7919}\t{number}.{number % 97}e-{number}  \t x²{'!' * (number % 5)}" for number in range(200)
    ]
    return [*sources, *scripts, *numbers]


@pytest.mark.parametrize("kind", ["smollm2", "llama3", "sentencepiece"])
def test_ten_thousand_lines(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers = tmp_path / "tokenizer"
    tokenizers.mkdir()
    match kind:
        case "smollm2":
            write_smollm2(tokenizers)
        case "llama3":
            write_llama3(tokenizers, monkeypatch)
        case _:
            write_sentencepiece(tokenizers)
    tokenizer = AutoTokenizer.from_pretrained(tokenizers)
    parent = write_model(tmp_path / "parent", vocab_size=len(tokenizer))
    for name in COMPANION_FILES:
        if (tokenizers / name).is_file():
            (tokenizers / name).rename(parent / name)
    folder = slice_folder(parent, tmp_path / "cut", random_selection(parent, head_dim=8, intermediate_size=96))
    (tmp_path / "export").mkdir()
    write_export(folder, tmp_path / "export", "float32", "# a model\n")
    write_gguf(tmp_path / "export", tmp_path / "model.gguf", "f16", "model")
    lines = lines_of_text()
    assert len(lines) == LINES
    found = ask(tmp_path / "model.gguf", tmp_path, texts=lines)["texts"]
    differ = [
        line
        for number, line in enumerate(lines)
        if found[number] != tokenizer(line, add_special_tokens=False).input_ids
    ]
    assert not differ, (len(differ), differ[:5])
