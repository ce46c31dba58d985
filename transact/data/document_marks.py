"""The special tokens that separate documents: those of pretraining, not those of the chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")  # tried in order where `eos` ends a chat turn


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentMarks:
    """Token ids before and after every document."""

    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    def describe(self, tokenizer: Any) -> str:
        """Return the marks in words: "'<s>' before, '</s>' after"."""
        sides = (("before", self.begin), ("after", self.end))
        return ", ".join(
            f"{''.join(tokenizer.convert_ids_to_tokens(list(ids)))!r} {side}" for side, ids in sides if ids
        )


def document_marks(tokenizer: Any, choice: str) -> DocumentMarks:
    """Return the marks that a value of data.document_marks means for a tokenizer.

    "auto": before a document, what the tokenizer itself puts before every text; after it, what it puts there, else its
    end-of-text token. `eos` counts as that unless the chat template names it: an instruct model's `eos` ends a turn.

    Raises:
        ValueError: the tokenizer has no such mark.
    """
    bos, eos = (_ids(each) for each in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    if choice == "auto":
        return _own_marks(tokenizer, bos)
    for name, ids, choices in (("bos", bos, ("both", "begin")), ("eos", eos, ("both", "end"))):
        if choice in choices and not ids:
            raise ValueError(
                f"data.document_marks={choice!r} is not allowed: the model's tokenizer has no {name} token"
            )
    return DocumentMarks(begin=bos if choice in ("both", "begin") else (), end=eos if choice in ("both", "end") else ())


def _own_marks(tokenizer: Any, bos: tuple[int, ...]) -> DocumentMarks:
    begin, end = _added(tokenizer)
    end = end or _end_of_text(tokenizer)
    if not begin and not end and not _is_of_chats(tokenizer, tokenizer.bos_token):
        begin = bos  # nothing else separates documents
    return DocumentMarks(begin=begin, end=end)


def _added(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens that the tokenizer itself puts before and after a text."""
    backend = tokenizer.backend_tokenizer
    plain = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start]), tuple(whole[start + len(plain) :])
    return (), ()


def _end_of_text(tokenizer: Any) -> tuple[int, ...]:
    vocabulary = tokenizer.get_vocab()
    for mark in (tokenizer.eos_token, *END_OF_TEXT):
        if mark is not None and mark in vocabulary and not _is_of_chats(tokenizer, mark):
            return (vocabulary[mark],)
    return ()


def _is_of_chats(tokenizer: Any, mark: str | None) -> bool:
    template = tokenizer.chat_template
    templates = template.values() if isinstance(template, dict) else [template or ""]
    return mark is not None and any(mark in each for each in templates)


def _ids(token: int | None) -> tuple[int, ...]:
    return () if token is None else (token,)
