"""The template of data.*.text_template: fields of a row in braces, and what stands between them."""

from __future__ import annotations

from string import Formatter

TYPED = {r"\n": "\n", r"\t": "\t"}  # as a command line has them, where a YAML file has the characters


def parse_template(template: str) -> tuple[tuple[str, str | None], ...]:
    r"""Return the pieces of a template: each a literal text and the field behind it, None where none follows.

    The syntax is that of Python's format strings with plain names. What is typed as \n or \t is a line break or a tab.

    Raises:
        ValueError: it is no format string, has no field, or a field with more than a name.
    """
    pieces = [*Formatter().parse(as_written(template))]
    names = [name for _, name, _, _ in pieces if name is not None]
    if not names:
        raise ValueError("it has no field, as in {title}")
    for _, name, described, conversion in pieces:
        if name is not None and (not name.strip() or described or conversion or any(each in name for each in ".[]")):
            raise ValueError("a field is a name in braces and no more, as in {title}; a brace itself is written twice")
    return tuple((literal, name) for literal, name, _, _ in pieces)


def as_written(template: str) -> str:
    r"""Return a template with the characters that \n and \t stand for."""
    for typed, meant in TYPED.items():
        template = template.replace(typed, meant)
    return template
