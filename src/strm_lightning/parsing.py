"""Command lines that are wrong are told so in one line, with near names for words that are unknown."""

import re
import sys
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser


class Parser(ArgumentParser):
    """A parser whose errors are one line instead of all options and a line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong, which options have near names, and where all options are told; exit status 2."""
        parser: Any = getattr(ex, "subcommand_parser", None) or self
        near = [name for word in _unknown(message) for name in _near(word, parser)]
        hint = f"did you mean {', '.join(near)}? " if near else ""
        program = parser.prog.replace(" [options]", "")
        sys.stderr.write(f"error: {' '.join(message.split())}; {hint}all options: {program} --help\n")
        raise SystemExit(2)


def near_names(word: str, names: Any) -> list[str]:
    """The names that a mistyped word may have meant, nearest first."""
    return get_close_matches(word, list(names), n=3, cutoff=0.6)


def _unknown(message: str) -> list[str]:
    """Options that a message calls unknown, without the dashes."""
    # Before jsonargparse 4.48 the message starts with a capital.
    told = re.search(r"[Uu]nrecognized arguments: (.*)|does not accept option '([\w.]+)'", message)
    if told is None:
        return []
    words = told[1].split() if told[1] else [told[2]]
    return [word.partition("=")[0].lstrip("-") for word in words]


def _near(word: str, parser: Any) -> list[str]:
    names = {option.lstrip("-") for option in parser._option_string_actions if not option.endswith("+")}
    group, _, last = word.rpartition(".")
    same = [name for name in names if name.rpartition(".")[2] == last]  # the right name in the wrong group
    of_group = {name.removeprefix(f"{group}."): name for name in names if name.rpartition(".")[0] == group}
    return [f"--{name}" for name in sorted(same) or [of_group[near] for near in near_names(last, of_group)]]
