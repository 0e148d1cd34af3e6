"""The commands ``strm`` and ``lightning``, which are one and the same."""

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Commands beside Lightning's fit, validate and test: a function each, whose signature makes the options.
COMMANDS: dict[str, str] = {"convert": "convert:convert"}


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line; what we refuse is told in one line, with exit status 2."""
    try:
        _run(args)
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
        from jsonargparse import auto_cli

        auto_cli(command(arguments[0]), args=arguments[1:], prog=f"strm {arguments[0]}", as_positional=True)
    else:
        from strm_lightning.training import run

        run(None if args is None else arguments)  # LightningCLI warns where it is handed what it finds itself


def command(name: str) -> Callable[..., Any]:
    """The function behind a command."""
    module, function = COMMANDS[name].split(":")
    return getattr(importlib.import_module(f"strm_lightning.{module}"), function)


def _is_ours(error: BaseException) -> bool:
    """Whether one of our own lines raised it, worded for people; anything else is a bug and keeps its trace."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_relative_to(Path(__file__).parent)
