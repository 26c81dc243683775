"""Turns docstrings into Markdown for the page of the Python reference (an extension of griffe, see mkdocs.yml).

The docstrings of this project say `name: what it is` for arguments and fields, a line or a paragraph each. Here these
become lists. Everything else is Markdown already, but for `<`, which would begin HTML.
"""

import re
from typing import Any

import griffe

FIELD = re.compile(r"([A-Za-z_][\w, /]*?)( \[[^\]]*\])?: (?=\S)")
CODE = re.compile(r"(`[^`]*`)")


def _escaped(text: str) -> str:
    """Text with `<` escaped outside of code."""
    pieces = CODE.split(text)
    return "".join(piece if at % 2 else piece.replace("<", "&lt;") for at, piece in enumerate(pieces))


def _is_field(line: str) -> bool:
    """Whether a line begins with names, as `seed:` or `b1, b2, eps [R]:` do; a sentence with a colon does not."""
    found = FIELD.match(line)
    return found is not None and all(re.fullmatch(r"\w+", name.strip()) for name in found[1].split(","))


def _as_list(lines: list[str]) -> str:
    """Lines of fields as a list, an item for each field."""
    items: list[str] = []
    for line in lines:
        if _is_field(line) or not items:
            items.append(FIELD.sub(r"**\1**\2: ", line, count=1))
        else:
            items[-1] += " " + line.strip()
    return "\n".join(f"- {_escaped(item)}" for item in items)


def markdown(docstring: str) -> str:
    """A docstring as Markdown."""
    sections = []
    for paragraph in re.split(r"\n\s*\n", docstring):
        lines = paragraph.splitlines()
        if lines and lines[0].strip() == "Attributes:":
            sections.append(_as_list([line.removeprefix("    ") for line in lines[1:]]))
        elif paragraph.startswith("    "):
            sections.append(paragraph)
        elif lines and _is_field(lines[0]):
            sections.append(_as_list(lines))
        else:
            sections.append(_escaped(paragraph))
    return "\n\n".join(sections)


class Docstrings(griffe.Extension):
    """Rewrites each docstring when it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
