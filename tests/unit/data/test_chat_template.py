"""Conversations as tokens through the tokenizer's own chat template, and which of them the assistant says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from transact.config.inputs import TextConfig
from transact.data import token_parts
from transact.data.chat_template import ChatTemplate, chat_template_of
from transact.data.document_marks import DocumentMarks, document_marks
from transact.data.token_parts import Packing
from transact.data.token_store import COUNTED_NAME, TOKENS_NAME, TokenStore, store_damage, tokenizer_digest
from transact.data.tokenising import write_token_store

WORDS = ["<s>", "<end>", "<text>", "<user>", "<bot>", "\n", "hi", "you", "there", "how", "fine", "call", "sun", "sys"]
ID = {word: number for number, word in enumerate(WORDS)}
SPECIAL = WORDS[:5]
TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'assistant' %}<bot>{{ m.content }}{% for c in m.tool_calls or [] %} call{% endfor %}<end>"
    "{% elif m.role == 'user' %}<user>{{ m.content }}<end>"
    "{% else %}sys {{ m.content }}<end>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
BLOCKS = TURNS.replace("<bot>{{ m.content }}", "<bot>{% generation %}{{ m.content }}").replace(
    "{% endfor %}<end>", "{% endfor %}<end>{% endgeneration %}"
)
USER, ANSWER = {"role": "user", "content": "hi there"}, {"role": "assistant", "content": "how you"}
TWO_TURNS = [USER, ANSWER, {"role": "user", "content": "fine"}, {"role": "assistant", "content": "sun"}]
# What the templates write for TWO_TURNS, by hand; capital letters count where answers are asked for.
WRITTEN = "<s> <user> hi there <end> \n <bot> HOW YOU <END> \n <user> fine <end> \n <bot> SUN <END> \n"


def tokenizer_with(template: str | None, **special: str) -> Any:
    """A tokenizer that has a token for each word, and the line break."""
    backend = Tokenizer(models.WordLevel(ID, unk_token="sys"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    backend.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **({"bos_token": "<s>", "eos_token": "<end>"} | special)
    )
    tokenizer.chat_template = template
    return tokenizer


def by_hand(words: str) -> tuple[list[int], list[bool]]:
    """Tokens of words between spaces, and whether each is written in capital letters."""
    split = words.split(" ")
    return [ID[word.lower()] for word in split], [word != word.lower() for word in split]


def encoded(
    messages: list[dict[str, Any]], template: str = TURNS, marks: DocumentMarks | None = None, answers: bool = True
) -> tuple[list[int], list[bool]]:
    chat = ChatTemplate(tokenizer_with(template), marks or DocumentMarks(), answers=answers)
    (found,) = chat.encode([json.dumps({"messages": messages})])
    return found.tokens, found.counted


@pytest.mark.parametrize("template", [TURNS, BLOCKS], ids=["by prefixes", "generation blocks"])
def test_answers_are_what_the_assistant_says_and_the_token_that_ends_it(template: str) -> None:
    tokens, counted = encoded(TWO_TURNS, template)
    assert (tokens, counted) == by_hand(WRITTEN)
    assert encoded(TWO_TURNS, template, answers=False) == (tokens, [])


@pytest.mark.parametrize("template", [TURNS, BLOCKS], ids=["by prefixes", "generation blocks"])
def test_calls_of_tools_are_answers_and_what_tools_return_is_not(template: str) -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    returned = {"role": "tool", "content": "sun"}
    found = encoded([USER, called, returned, ANSWER], template)
    assert found == by_hand("<s> <user> hi there <end> \n <bot> CALL <END> \n sys sun <end> \n <bot> HOW YOU <END> \n")


def test_marked_answers_are_those_of_the_tokenizers_own_mask() -> None:
    tokenizer = tokenizer_with(BLOCKS)
    found = tokenizer.apply_chat_template(TWO_TURNS, return_dict=True, return_assistant_tokens_mask=True)
    assert encoded(TWO_TURNS, BLOCKS) == (found["input_ids"], [each == 1 for each in found["assistant_masks"]])


def test_two_answers_in_a_row_count_and_a_greeting_before_any_prompt_does_not() -> None:
    found = encoded([ANSWER, USER, ANSWER, {"role": "assistant", "content": "sun"}])
    greeting = "<s> <bot> how you <end> \n <user> hi there <end> \n"
    assert found == by_hand(f"{greeting} <bot> HOW YOU <END> \n <bot> SUN <END> \n")


def test_the_tools_of_a_row_reach_the_template() -> None:
    template = "{% if tools %}{{ tools[0].function.name }} {% endif %}" + TURNS
    chat = ChatTemplate(tokenizer_with(template), DocumentMarks(), answers=True)
    row = {"messages": [USER, ANSWER], "tools": [{"type": "function", "function": {"name": "sun"}}]}
    (found,) = chat.encode([json.dumps(row)])
    assert (found.tokens, found.counted) == by_hand("sun <s> <user> hi there <end> \n <bot> HOW YOU <END> \n")


def test_white_space_behind_an_answer_counts_only_where_it_ends_the_turn() -> None:
    tokens, counted = encoded([USER, ANSWER], TURNS.replace("<end>", ""))
    assert tokens == by_hand("<s> <user> hi there \n <bot> how you \n")[0]
    assert [WORDS[token] for token, counts in zip(tokens, counted, strict=True) if counts] == ["how", "you", "\n"]


@pytest.mark.parametrize(
    ("marks", "around"),
    [
        (DocumentMarks(), "{}"),
        (DocumentMarks(begin=(ID["<s>"],)), "{}"),
        (DocumentMarks(begin=(ID["<s>"],), end=(ID["<end>"],)), "{}"),
        (DocumentMarks(end=(ID["<text>"],)), "{} <text>"),
        (DocumentMarks(begin=(ID["<text>"],), end=(ID["<text>"],)), "<text> {} <text>"),
    ],
    ids=["none", "bos", "both", "end of text", "others"],
)
@pytest.mark.parametrize("answers", [True, False])
def test_marks_are_put_around_what_does_not_have_them(marks: DocumentMarks, around: str, answers: bool) -> None:
    """The template writes <s> before, and <end> with a line break after a conversation."""
    tokens, counted = by_hand(around.format(WRITTEN))
    assert encoded(TWO_TURNS, marks=marks, answers=answers) == (tokens, counted if answers else [])


@pytest.mark.parametrize("answers", [True, False])
def test_the_day_is_not_in_the_tokens(answers: bool) -> None:
    template = "{% set day = strftime_now('%d %b %Y') %}{% if day == '26 Jul 2024' %}sun {% endif %}" + TURNS
    tokens, _ = encoded([USER], template, answers=answers)
    assert tokens == by_hand("sun <s> <user> hi there <end> \n")[0]


def refusal_of(loss: str, template: str | None) -> str:
    text = TextConfig(source="files", files=["x.jsonl"], messages_field="messages", loss=loss)
    with pytest.raises(ValueError, match=r"^data\.train\.") as refused:
        chat_template_of(text, "data.train", tokenizer_with(template), DocumentMarks())
    return str(refused.value)


LAST_ALONE = TURNS.replace("<bot>{{ m.content }}", "<bot>{% if loop.last %}sun {% endif %}{{ m.content }}")
OTHER_PROMPT = TURNS.replace("{% if add_generation_prompt %}<bot>", "{% if add_generation_prompt %}<bot>sun")
NO_ANSWER = BLOCKS.replace("m.role == 'assistant'", "m.role == 'nobody'")


def test_what_cannot_be_rendered_is_refused_before_any_text_is_read() -> None:
    for loss in ("all", "answers"):
        said = refusal_of(loss, None)
        assert said.startswith("data.train.messages_field='messages' is not allowed") and "no chat template" in said
    for template in (LAST_ALONE, OTHER_PROMPT):
        said = refusal_of("answers", template)
        assert said.startswith("data.train.loss='answers' needs a chat template that shows where answers are")
        assert "message 2" in said and "\n" not in said
    assert "marks no answer" in refusal_of("answers", NO_ANSWER)


@pytest.mark.parametrize("template", [LAST_ALONE, OTHER_PROMPT])
def test_a_template_without_a_place_for_answers_serves_for_all_tokens(template: str) -> None:
    text = TextConfig(source="files", files=["x.jsonl"], messages_field="messages")
    chat = chat_template_of(text, "data.train", tokenizer_with(template), DocumentMarks())
    assert chat is not None and not chat.answers
    assert chat.encode([json.dumps({"messages": TWO_TURNS})])[0].counted == []


def test_a_conversation_that_the_template_refuses_is_named_with_the_reason() -> None:
    template = "{% if messages[0].role == 'assistant' %}{{ raise_exception('users come first') }}{% endif %}" + TURNS
    with pytest.raises(ValueError, match=r"^the text: .* refuses a conversation \(.*users come first.*how you"):
        encoded([ANSWER], template)


# -- the store --

NUMBERS = 40
CONVERSATIONS = [
    json.dumps({"messages": TWO_TURNS[: 2 + 2 * (number % 2)] * (1 + number % 3)}) for number in range(NUMBERS)
]


def packing(answers: bool = True, template: str = TURNS) -> Packing:
    tokenizer = tokenizer_with(template)
    marks = document_marks(tokenizer, "begin")
    return Packing(
        sequence_length=16,
        max_sequences=10**6,
        marks=marks,
        chat=ChatTemplate(tokenizer, marks, answers=answers),
    )


def write(folder: Path, answers: bool = True, template: str = TURNS) -> TokenStore:
    write_token_store(folder, CONVERSATIONS, tokenizer_with(template), packing(answers, template))
    return TokenStore(folder)


@pytest.mark.parametrize("characters", [100, 10**6], ids=["many parts", "one part"])
def test_a_store_holds_which_tokens_count(characters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many parts it is made of, and none of a conversation is cut off to be tokenised by itself."""
    monkeypatch.setattr(token_parts, "BATCH_CHARACTERS", characters)
    monkeypatch.setattr(token_parts, "PIECE_CHARACTERS", 50)
    store = write(tmp_path / "s")
    expected = [encoded(json.loads(each)["messages"]) for each in CONVERSATIONS]
    tokens, counted = ([each for pair in expected for each in pair[side]] for side in (0, 1))
    positions, stored = torch.arange(store.num_sequences), store.num_sequences * 16
    assert store.num_sequences == len(tokens) // 16
    assert store.sequences(positions).flatten().tolist() == tokens[:stored]
    found = store.counted(positions)
    assert found is not None and found.dtype == torch.bool and found.flatten().tolist() == counted[:stored]
    assert store.index["counted_tokens"] == sum(counted[:stored])
    assert store.num_targets(torch.tensor([3, 0])) == int(found[[3, 0], 1:].sum())


def test_a_store_of_all_tokens_says_that_all_count(tmp_path: Path) -> None:
    store = write(tmp_path / "s", answers=False)
    assert store.counted(torch.arange(2)) is None and store.num_targets(torch.arange(2)) == 2 * 15
    assert not (tmp_path / "s" / COUNTED_NAME).exists() and "counted_tokens" not in store.index


def test_what_counts_is_part_of_the_digest_and_damage_of_it_is_found(tmp_path: Path) -> None:
    store, other = write(tmp_path / "s"), write(tmp_path / "all", answers=False)
    assert store.index["files"][TOKENS_NAME] == other.index["files"][TOKENS_NAME] and store.sha256 != other.sha256
    path = tmp_path / "s" / COUNTED_NAME
    content = path.read_bytes()
    for place in (0, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert COUNTED_NAME in str(store_damage(tmp_path / "s"))
    path.write_bytes(content)
    assert store_damage(tmp_path / "s") is None
    path.unlink()
    assert store_damage(tmp_path / "s")


def test_what_was_made_before_a_kill_is_kept_with_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_parts, "BATCH_CHARACTERS", 2000)

    def broken() -> Any:
        yield from CONVERSATIONS[: NUMBERS // 2]
        raise OSError("the disk went away")

    tokenizer = tokenizer_with(TURNS)
    with pytest.raises(OSError, match="went away"):
        write_token_store(tmp_path / "s", broken(), tokenizer, packing())
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s.tmp").glob("part_*")}
    assert kept
    again = write(tmp_path / "s")
    assert again.index == write(tmp_path / "whole").index


def test_conversations_without_any_answer_are_refused(tmp_path: Path) -> None:
    asked = [json.dumps({"messages": [USER] * 5})] * 10
    with pytest.raises(ValueError, match="none of its conversations has an answer"):
        write_token_store(tmp_path / "s", asked, tokenizer_with(TURNS), packing(), name="data.train")
    assert list(tmp_path.iterdir()) == []


def test_another_template_makes_another_store_of_conversations_and_the_same_of_text() -> None:
    one, other = tokenizer_with(TURNS), tokenizer_with(BLOCKS)
    marks = DocumentMarks()
    assert tokenizer_digest(one, marks) == tokenizer_digest(other, marks)
    assert tokenizer_digest(one, marks, is_chat=True) != tokenizer_digest(other, marks, is_chat=True)
