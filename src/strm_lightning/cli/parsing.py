"""A parser that prints errors in one line, with similar names for unknown options."""

import re
import sys
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser


class Parser(ArgumentParser):
    """A parser that prints an error in one line, without the usage."""

    help_option = "--help"  # that shows all options

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong, options with similar names, and how to see all options; exit with status 2."""
        parser: Any = getattr(ex, "subcommand_parser", None) or self
        near = [name for word in _unknown(message) for name in _near(word, parser)]
        hint = f"did you mean {', '.join(near)}? " if near else ""
        program = parser.prog.replace(" [options]", "")
        show = getattr(parser, "help_option", "--help")
        sys.stderr.write(f"error: {one_line(message)}; {hint}all options: {program} {show}\n")
        raise SystemExit(2)

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration file; a file that is not text is an error of the command line."""
        try:
            return super().parse_path(cfg_path, *args, **kwargs)
        except UnicodeDecodeError:
            self.error(f"{cfg_path} is not a YAML file: it is not text in UTF-8")


def near_names(word: str, names: Any) -> list[str]:
    """The names that a mistyped word may have meant, nearest first."""
    return get_close_matches(word, list(names), n=3, cutoff=0.6)


def one_line(message: str) -> str:
    """A message on one line, without the list of types that jsonargparse repeats in its list of reasons."""
    line = " ".join(message.split())
    return re.sub(r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: - ", "", line)


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
