"""The commands ``strm`` and ``lightning``, which are one and the same."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Commands beside Lightning's fit, validate and test: a function each, whose signature makes the options.
COMMANDS: dict[str, str] = {
    "prepare": "data.prepare:prepare",
    "doctor": "data.doctor:doctor",
    "classify": "classifier.commands:classify",
    "demo": "classifier.commands:demo",
    "convert": "convert:convert",
    "compare": "evaluation.compare:compare",
    "plot": "evaluation.plots:plot",
}


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line; what we refuse is told in one line, with exit status 2."""
    try:
        _run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `strm … | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (ValueError, OSError, TypeError, ImportError) as error:
        if os.environ.get("STRM_TRACEBACK") or not _is_ours(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _run(args: Sequence[str] | None) -> None:
    arguments = list(sys.argv[1:] if args is None else args)
    if arguments[:1] == ["--version"]:
        from strm_lightning import __version__

        print(f"strm-lightning {__version__}")
    elif arguments and arguments[0] in COMMANDS:
        _call(command(arguments[0]), arguments[1:], f"strm {arguments[0]}")
    else:
        from strm_lightning.training import run

        run(None if args is None else arguments)  # LightningCLI warns where it is handed what it finds itself


def _call(function: Callable[..., Any], arguments: list[str], program: str) -> None:
    """Call a function with a command line; ``--flag`` alone is true, and ``*args`` are what stands without a name."""
    from docstring_parser import parse
    from jsonargparse import ArgumentParser, auto_cli

    parameters = inspect.signature(function).parameters.values()
    flags = {f"--{p.name}" for p in parameters if p.annotation is bool}
    arguments = [_spelled(word, flags) for word in arguments]
    rest = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]
    if not rest:
        _tell(auto_cli(function, args=arguments, prog=program, as_positional=True))
        return
    about = parse(function.__doc__ or "")
    parser = ArgumentParser(prog=program, description=about.short_description)
    parser.add_argument(rest[0], nargs="*", help={p.arg_name: p.description for p in about.params}[rest[0]])
    parser.add_function_arguments(function)
    found = vars(parser.parse_args(arguments))
    _tell(function(*found.pop(rest[0]), **found))


def _tell(report: Any) -> None:
    """Print what a command returned; a report that found problems says so in the exit status."""
    if report is not None:
        print(report)
        if status := getattr(report, "status", 0):
            raise SystemExit(status)


def _spelled(word: str, flags: set[str]) -> str:
    """``--save-support`` as ``--save_support``, and ``--flag`` alone as ``--flag=true``."""
    name, equals, value = word.partition("=")
    name = name.replace("-", "_").replace("__", "--", 1) if word.startswith("--") else name
    return f"{name}=true" if name in flags and not equals else name + equals + value


def command(name: str) -> Callable[..., Any]:
    """The function behind a command."""
    module, function = COMMANDS[name].split(":")
    return getattr(importlib.import_module(f"strm_lightning.{module}"), function)


def _is_ours(error: BaseException) -> bool:
    """Whether one of our own lines raised it, worded for people; anything else is a bug and keeps its trace."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_relative_to(Path(__file__).parent)
