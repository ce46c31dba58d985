"""The marks between documents are the tokenizer's own convention, for base models and for models of chats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import transact
from transact.data.document_marks import DocumentMarks, document_marks
from transact.data.token_parts import Packing
from transact.data.token_store import TokenStore, tokenizer_digest
from transact.data.tokenising import write_token_store

CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
LLAMA_2_CHAT = "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]{{ eos_token }}"
LLAMA_3_CHAT = "<|start_header_id|>user<|end_header_id|>{{ messages[0].content }}<|eot_id|>"
LLAMA_3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
SMOLLM2 = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tokenizer_of(
    marks: tuple[str, ...],
    *,
    template: str | None = None,
    chat: str | dict[str, str] | None = None,
    bos: str | None = None,
    eos: str | None = None,
) -> Any:
    """template: of the post-processor, what the tokenizer itself puts around a text."""
    words = {word: number for number, word in enumerate(("[UNK]", "a", "b", *marks))}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(marks))
    if template is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(mark, words[mark]) for mark in marks]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = chat
    return tokenizer


def llama_2(**changes: Any) -> Any:
    return tokenizer_of(("<s>", "</s>"), **({"template": "<s> $A", "bos": "<s>", "eos": "</s>"} | changes))


def llama_3(eos: str, chat: str | dict[str, str] | None = None) -> Any:
    return tokenizer_of(LLAMA_3, template="<|begin_of_text|> $A", bos="<|begin_of_text|>", eos=eos, chat=chat)


OWN = {
    "Llama 2": (llama_2(), "<s>", "</s>"),
    "Llama 2 chat": (llama_2(chat=LLAMA_2_CHAT), "<s>", "</s>"),
    "Llama 3": (llama_3("<|end_of_text|>"), "<|begin_of_text|>", "<|end_of_text|>"),
    "Llama 3 instruct": (llama_3("<|eot_id|>", LLAMA_3_CHAT), "<|begin_of_text|>", "<|end_of_text|>"),
    "several chat templates": (
        llama_3("<|eot_id|>", {"default": LLAMA_3_CHAT, "tools": LLAMA_3_CHAT}),
        "<|begin_of_text|>",
        "<|end_of_text|>",
    ),
    "SmolLM2": (tokenizer_of(SMOLLM2, bos="<|endoftext|>", eos="<|endoftext|>"), "", "<|endoftext|>"),
    "SmolLM2 instruct": (tokenizer_of(SMOLLM2, bos="<|im_start|>", eos="<|im_end|>", chat=CHAT), "", "<|endoftext|>"),
    "a chat's marks alone": (tokenizer_of(SMOLLM2[1:], bos="<|im_start|>", eos="<|im_end|>", chat=CHAT), "", ""),
    "both by the tokenizer": (llama_2(template="<s> $A </s>"), "<s>", "</s>"),
    "an end by the tokenizer": (llama_2(template="$A </s>"), "", "</s>"),
    "no post-processor": (llama_2(template=None), "", "</s>"),
    "bos alone": (tokenizer_of(("<s>",), bos="<s>"), "<s>", ""),
    "nothing": (tokenizer_of(()), "", ""),
}


def ids(tokenizer: Any, mark: str) -> tuple[int, ...]:
    return (tokenizer.convert_tokens_to_ids(mark),) if mark else ()


@pytest.mark.parametrize("name", OWN)
def test_marks_are_what_the_tokenizer_was_made_with(name: str, tmp_path: Path) -> None:
    tokenizer, begin, end = OWN[name]
    marks = document_marks(tokenizer, "auto")
    assert marks == DocumentMarks(begin=ids(tokenizer, begin), end=ids(tokenizer, end))
    described = marks.describe(tokenizer)
    assert (f"{begin!r} before" in described, f"{end!r} after" in described) == (bool(begin), bool(end))

    write_token_store(
        tmp_path / "s", ["a b", "b"], tokenizer, Packing(sequence_length=1, max_sequences=99, marks=marks)
    )
    store = TokenStore(tmp_path / "s")
    stored = store.sequences(torch.arange(store.num_sequences)).flatten().tolist()
    a, b = (tokenizer.convert_tokens_to_ids(each) for each in "ab")
    assert stored == [*marks.begin, a, b, *marks.end, *marks.begin, b, *marks.end]


def test_the_toy_ends_documents_as_it_was_trained() -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(transact.__file__).parent / "assets" / "demo_parent")
    assert document_marks(tokenizer, "auto") == DocumentMarks(end=(tokenizer.eos_token_id,))


@pytest.mark.parametrize(
    ("choice", "begin", "end"),
    [
        ("both", "<|im_start|>", "<|im_end|>"),
        ("begin", "<|im_start|>", ""),
        ("end", "", "<|im_end|>"),
        ("none", "", ""),
    ],
)
def test_a_choice_is_taken_as_it_is(choice: str, begin: str, end: str) -> None:
    tokenizer = OWN["SmolLM2 instruct"][0]
    marks = document_marks(tokenizer, choice)
    assert marks == DocumentMarks(begin=ids(tokenizer, begin), end=ids(tokenizer, end))
    assert tokenizer_digest(tokenizer, marks) != tokenizer_digest(tokenizer)  # other tokens: another store


@pytest.mark.parametrize(("choice", "missing"), [("both", "eos"), ("end", "eos"), ("begin", "bos")])
def test_a_mark_that_the_tokenizer_lacks_is_refused(choice: str, missing: str) -> None:
    tokenizer = OWN["nothing" if missing == "bos" else "bos alone"][0]
    with pytest.raises(ValueError, match=rf"^data\.document_marks='{choice}' is not allowed: .* no {missing} token$"):
        document_marks(tokenizer, choice)
