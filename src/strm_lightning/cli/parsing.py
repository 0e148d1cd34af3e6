"""Argument errors in one line, with suggestions for unknown options."""

import re
import sys
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from strm_lightning.messages import near_names


class Parser(ArgumentParser):
    """A parser that prints an error in one line, without the usage."""

    help_option = "--help"  # the option that shows all options

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message, options with similar names and the command that lists all options; exit with status 2."""
        parser: Any = getattr(ex, "subcommand_parser", None) or self
        near = [option for name in _unknown_options(message) for option in _similar_options(name, parser)]
        hint = f"did you mean {', '.join(near)}? " if near else ""
        program = parser.prog.replace(" [options]", "")
        show = getattr(parser, "help_option", "--help")
        sys.stderr.write(f"error: {one_line(message)}; {hint}all options: {program} {show}\n")
        raise SystemExit(2)

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration file; report a file that is not text as an argument error."""
        try:
            return super().parse_path(cfg_path, *args, **kwargs)
        except UnicodeDecodeError:
            self.error(f"{cfg_path} is not a YAML file: it is not text in UTF-8")


def one_line(message: str) -> str:
    """Join a message to one line, without the list of types, which jsonargparse repeats in its list of errors."""
    line = " ".join(message.split())
    return re.sub(r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: - ", "", line)


def _unknown_options(message: str) -> list[str]:
    """Return the unknown options that a message of jsonargparse names, without dashes."""
    # Before jsonargparse 4.48 the message starts with a capital.
    match = re.search(r"[Uu]nrecognized arguments: (.*)|does not accept option '([\w.]+)'", message)
    if match is None:
        return []
    options = match[1].split() if match[1] else [match[2]]
    return [option.partition("=")[0].lstrip("-") for option in options]


def _similar_options(unknown: str, parser: Any) -> list[str]:
    names = {option.lstrip("-") for option in parser._option_string_actions if not option.endswith("+")}
    group, _, last = unknown.rpartition(".")
    same = [name for name in names if name.rpartition(".")[2] == last]  # the same name in another group
    of_group = {name.removeprefix(f"{group}."): name for name in names if name.rpartition(".")[0] == group}
    return [f"--{name}" for name in sorted(same) or [of_group[near] for near in near_names(last, of_group)]]
