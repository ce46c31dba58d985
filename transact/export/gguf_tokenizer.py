"""The tokenizer of a folder in the words of llama.cpp.

llama.cpp holds the pre-tokenizers that it knows in code, under names: a byte-level BPE whose rules are none of them
would split text in another way without a complaint, so it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transact.files import read_json

GPT2_SPLIT = "gpt-2"
DIGITS = "digits"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The rules of a tokenizer.json, in order -> llama.cpp's name for them, and whether it then ignores merges for whole
# words of the vocabulary.
PRE_TOKENIZERS = {
    (GPT2_SPLIT,): ("gpt-2", False),
    (DIGITS, GPT2_SPLIT): ("smollm", False),
    (_WORDS % "{1,3}",): ("llama-bpe", True),
    (_WORDS % "",): ("qwen2", False),
}


def check_tokenizer(folder: Path) -> None:
    """llama.cpp knows the tokenizer of a folder.

    Raises:
        ValueError: it does not.
    """
    if is_byte_level(folder):
        pre_tokenizer_name(read_json(folder / "tokenizer.json"))
    elif not (folder / "tokenizer.model").is_file():
        raise ValueError(
            "its tokenizer is neither a byte-level BPE (tokenizer.json) nor sentencepiece (tokenizer.model)"
        )


def pre_tokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for the rules by which a tokenizer.json splits text before the merges.

    Raises:
        ValueError: it has none.
    """
    rules = tuple(rule for step in _steps(tokenizer) if (rule := _rule(step)) is not None)
    name, ignores_merges = PRE_TOKENIZERS.get(rules, ("", False))
    if not name or bool(tokenizer["model"].get("ignore_merges")) != ignores_merges:
        known = ", ".join(known for known, _ in PRE_TOKENIZERS.values())
        raise ValueError(f"its tokenizer splits text by rules that llama.cpp has under none of the names {known}")
    return name


def add_tokenizer(writer: Any, folder: Path, vocab_size: int) -> None:
    """Vocabulary, merges or scores, and special tokens; entries without a token are filled up."""
    import gguf

    byte_level = is_byte_level(folder)
    tokens = _byte_level_tokens(folder) if byte_level else _sentencepiece_tokens(folder)
    tokens += [(f"[PAD{index}]".encode(), 0.0, gguf.TokenType.UNUSED) for index in range(len(tokens), vocab_size)]
    texts, scores, kinds = zip(*tokens[:vocab_size], strict=True)
    if byte_level:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer_name(read_json(folder / "tokenizer.json")))
    else:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(list(scores))
    writer.add_token_list(list(texts))
    writer.add_token_types(list(kinds))
    special = gguf.SpecialVocab(folder, load_merges=byte_level, n_vocab=vocab_size)
    special.add_special_token["bos"] = _adds_first_token(folder, special.special_token_ids.get("bos"))
    special.add_to_gguf(writer, quiet=True)


def is_byte_level(folder: Path) -> bool:
    path = folder / "tokenizer.json"
    return path.is_file() and any(step["type"] == "ByteLevel" for step in _steps(read_json(path)))


def _steps(tokenizer: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = tokenizer.get("pre_tokenizer") or {"type": "Sequence", "pretokenizers": []}
    return list(found["pretokenizers"]) if found["type"] == "Sequence" else [found]


def _rule(step: Mapping[str, Any]) -> str | None:
    """One step in the words of `PRE_TOKENIZERS`; None for one that splits nothing."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": uses_split}:
            return GPT2_SPLIT if uses_split else None
        case {"type": "Digits", "individual_digits": True}:
            return DIGITS
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return pattern
    return str(step)  # known to no one


def _byte_level_tokens(folder: Path) -> list[tuple[bytes, float, Any]]:
    """(text, score, kind) of every entry of a tokenizer.json, without gaps."""
    import gguf

    tokenizer = read_json(folder / "tokenizer.json")
    found = {index: (text.encode(), 0.0, gguf.TokenType.NORMAL) for text, index in tokenizer["model"]["vocab"].items()}
    for added in tokenizer.get("added_tokens", []):
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        found[added["id"]] = (added["content"].encode(), 0.0, kind)
    gap = gguf.TokenType.UNUSED
    return [found.get(index, (f"[PAD{index}]".encode(), 0.0, gap)) for index in range(max(found) + 1)]


def _sentencepiece_tokens(folder: Path) -> list[tuple[bytes, float, Any]]:
    import gguf

    return list(gguf.SentencePieceVocab(folder).all_tokens())


def _adds_first_token(folder: Path, first: int | None) -> bool:
    """Whether the tokenizer itself begins a text with this token."""
    from transformers import AutoTokenizer

    encoded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)("a").input_ids
    return first is not None and bool(encoded) and encoded[0] == first
