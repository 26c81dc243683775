"""Fills the pages of the site that are made from the code: every flag of every command, and every experiment.

mkdocs calls `on_page_markdown` (see mkdocs.yml). A page says `<!-- commands -->` or `<!-- experiments -->` where they
go.
"""

import argparse
import importlib
import re
import tomllib
from typing import Any

from jaxgrok.cli import COMMANDS
from jaxgrok.cli.sweep import sweeps_dir


def _cell(text: str) -> str:
    """Text as a cell of a table, where `|` and `<` would mean something else."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _flag(action: argparse.Action) -> str:
    """`--seeds N|A:B|LIST`, or the name of a positional argument."""
    value = "" if action.nargs == 0 else str(action.metavar or action.dest)
    name = action.option_strings[-1] if action.option_strings else ""
    return f"`{' '.join(word for word in (name, value) if word)}`"


def _help(action: argparse.Action) -> str:
    return _cell((action.help or "").replace("%%", "%"))


def _epilog(text: str) -> list[str]:
    """The end of a help text: its examples as code, the rest as it is."""
    paragraphs = text.strip().split("\n\n")
    return [f"```text\n{part}\n```" if part.startswith("example") else part for part in paragraphs]


def _heading(title: str) -> list[str]:
    """The title of a group of flags: up to the first `:` or `;` a heading, then a sentence."""
    heading, _, rest = re.sub("[:;] ", "\0", title, count=1).partition("\0")
    return [f"### {heading[0].upper()}{heading[1:]}", *([f"{rest[0].upper()}{rest[1:]}."] if rest else [])]


def command_reference(name: str) -> str:
    """A section: what a command does, examples, and a table of flags for each group of its help."""
    parser = importlib.import_module(f"jaxgrok.cli.{name}").parser(f"jaxgrok {name}")
    sections = [f"## jaxgrok {name}", parser.description or ""]
    sections += _epilog((parser.epilog or "") % {"prog": parser.prog})
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest not in ("help", "help_all")]
        if actions:
            sections += _heading((group.title or "").replace("positional arguments", "arguments"))
            rows = [f"| {_flag(action)} | {_help(action)} |" for action in actions]
            sections.append("\n".join(["| flag | what it says |", "|---|---|", *rows]))
    return "\n\n".join(section for section in sections if section)


def commands() -> str:
    return "\n\n".join(map(command_reference, COMMANDS))


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value).lower()


def experiments() -> str:
    """A section for each file in sweeps/: its question, its cost, what it should show, and its values."""
    sections = []
    for file in sorted(sweeps_dir().glob("*.toml")):
        fields = tomllib.loads(file.read_text())
        question, cost, expect = (_cell(fields.pop(name)) for name in ("question", "cost", "expect"))
        values = ", ".join(f"`{name} = {_value(value)}`" for name, value in fields.items())
        sections += [f"## {file.stem}", question, f"- Cost: {cost}", f"- Expected: {expect}", f"- Values: {values}"]
    return re.sub(r"\n\n- ", "\n- ", "\n\n".join(sections)).replace("\n- Cost", "\n\n- Cost")


MADE = {"<!-- commands -->": commands, "<!-- experiments -->": experiments}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with what is made from the code in place."""
    for mark, made in MADE.items():
        if mark in markdown:
            markdown = markdown.replace(mark, made())
    return markdown
