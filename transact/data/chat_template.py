"""The tokenizer's own chat template: conversations as tokens, and which of these the assistant says.

Where the template marks with {% generation %} what the assistant says, it is taken at its word. Else an answer is what
a conversation that ends with it has more than the prompt for it, which holds for templates that never go back on what
they have written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from transact.config.inputs import TextConfig
from transact.data.document_marks import DocumentMarks
from transact.errors import LONGEST_REASON, Refusal, one_line

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
CLOCK = "strftime_now"  # what templates call to write the date
# Tokens must not depend on the day on which they are made. This is the date that LLaMA 3.1 has without a clock.
FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
SHOWN_CHARACTERS = 100
PROBE = [{"role": role, "content": f"{role} {turn}"} for turn in "ab" for role in ("user", "assistant")]

Span = tuple[int, int]  # [start, stop) in characters


class Encoded(NamedTuple):
    """Tokens of a text, and which of them count for the loss. counted: empty where all do."""

    tokens: list[int]
    counted: list[bool]


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: A fast tokenizer of transformers.
        marks: around documents; a mark that the template writes is not put there again.
        answers: whether the assistant's tokens alone count.
        name: of the text, for messages.
    """

    def __init__(self, tokenizer: Any, marks: DocumentMarks, *, answers: bool, name: str = "the text") -> None:
        self._tokenizer, self._marks, self._name = tokenizer, marks, name
        self.answers = answers
        self._special = tuple(sorted(each.content for each in tokenizer.added_tokens_decoder.values()))

    def check(self) -> None:
        """Raise ValueError where answers are asked for and the template shows in a short conversation no such thing."""
        if not self.answers:
            return
        try:
            text = self._rendered(PROBE, None)
        except Refusal:  # as of a template that wants a system message: the text itself will tell
            return
        if not self._spans(PROBE, None, text):
            raise Refusal("loss='answers': the tokenizer's chat template marks no answer in a conversation with two")

    def encode(self, conversations: Sequence[str]) -> list[Encoded]:
        """Return the tokens of conversations, in the JSON of conversations.py, with the marks around each.

        Raises:
            ValueError: the template refuses a conversation, or does not show where its answers are.
        """
        rendered = [self._text_and_spans(each) for each in conversations]
        texts = [text for text, _ in rendered]
        encodings = self._tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        return [
            self._with_marks(encoding.ids, [_is_within(each, spans) for each in encoding.offsets])
            for encoding, (_, spans) in zip(encodings, rendered, strict=True)
        ]

    def _text_and_spans(self, conversation: str) -> tuple[str, list[Span]]:
        """Return a conversation as text, and where the answers are in it, if they are asked for."""
        whole = json.loads(conversation)
        messages, tools = whole["messages"], whole.get("tools")
        try:
            text = self._rendered(messages, tools)
            return text, self._spans(messages, tools, text) if self.answers else []
        except Refusal as error:
            raise Refusal(f"{self._name}: {error}: {one_line(conversation, SHOWN_CHARACTERS)}") from None

    def _with_marks(self, tokens: list[int], counted: list[bool]) -> Encoded:
        begin, end = list(self._marks.begin), list(self._marks.end)
        if tokens[: len(begin)] == begin:
            begin = []
        written = len(tokens)
        while written and self._tokenizer.decode([tokens[written - 1]]).isspace():
            written -= 1
        if end and tokens[:written][-len(end) :] == end:
            end = []
        counted = [*(False for _ in begin), *counted, *(False for _ in end)]
        return Encoded([*begin, *tokens, *end], counted if self.answers else [])

    def _spans(self, messages: list[dict[str, Any]], tools: list[Any] | None, text: str) -> list[Span]:
        """Return where the answers are in a rendered conversation."""
        if GENERATION.search(self._template(tools)):
            return self._marked_spans(messages, tools)
        return self._spans_behind_prompts(messages, tools, text)

    def _marked_spans(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> list[Span]:
        """Return where the template says that answers are.

        The tokenizer's own mask loses an answer that begins with a character of no token, such as white space.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        _, (spans,) = render_jinja_template(
            conversations=[messages],
            tools=tools,
            chat_template=self._template(tools),
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        return [(start, stop) for start, stop in spans]

    def _spans_behind_prompts(self, messages: list[dict[str, Any]], tools: list[Any] | None, text: str) -> list[Span]:
        """Return where the answers are in a rendered conversation, each with what ends its turn.

        A message of the assistant that opens the conversation answers nothing.
        """
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant" or number == 0:
                continue
            prompt = self._rendered(messages[:number], tools, is_prompt=True)
            turn = self._rendered(messages[: number + 1], tools)
            if not (turn.startswith(prompt) and text.startswith(turn)):
                raise Refusal(
                    "loss='answers' needs a chat template that shows where answers are: the tokenizer's has no "
                    f"{{% generation %}}, and what it writes of message {number + 1} does not begin with its prompt, "
                    "or changes with what follows"
                )
            stop = turn.rstrip()
            spans.append((len(prompt), len(stop if stop.endswith(self._special) else turn)))
        return spans

    def _rendered(self, messages: list[dict[str, Any]], tools: list[Any] | None, *, is_prompt: bool = False) -> str:
        """Return a conversation as text. is_prompt: up to where the assistant's next answer begins."""
        options = {"chat_template": self._template(tools), "add_generation_prompt": is_prompt, "tokenize": False}
        try:
            return str(self._tokenizer.apply_chat_template(messages, tools=tools, **options))
        except Exception as error:  # noqa: BLE001 - templates raise errors of their own, and fail in every way
            reason = one_line(error, LONGEST_REASON)
            raise Refusal(f"the tokenizer's chat template refuses a conversation ({reason})") from None

    def _template(self, tools: list[Any] | None) -> str:
        template: str = self._tokenizer.get_chat_template(None, tools)
        return FIXED_DATE + template if CLOCK in template else template


def chat_template_of(text: TextConfig, setting: str, tokenizer: Any, marks: DocumentMarks) -> ChatTemplate | None:
    """Return what renders the conversations of a text; None where its rows hold text.

    Raises:
        ValueError: the tokenizer has no chat template, or one that does not show where answers are, if that is asked.
    """
    if text.messages_field is None:
        return None
    check_has_template(tokenizer, f"{setting}.messages_field={text.messages_field!r}")
    found = ChatTemplate(tokenizer, marks, answers=text.loss == "answers", name=setting)
    try:
        found.check()
    except Refusal as error:
        raise Refusal(f"{setting}.{error}") from None
    return found


def check_has_template(tokenizer: Any, setting: str) -> None:
    """Raise ValueError where a tokenizer has no chat template, which a setting needs."""
    if not tokenizer.chat_template:
        raise Refusal(f"{setting} is not allowed: the model's tokenizer has no chat template")


def _is_within(offsets: Span, spans: Sequence[Span]) -> bool:
    """Return whether a token has a character of a span; one without characters, where it stands."""
    start, stop = offsets
    return any(start < last and max(stop, start + 1) > first for first, last in spans)
