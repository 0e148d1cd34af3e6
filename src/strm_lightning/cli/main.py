"""The command ``strm``, which is also installed as ``lightning``."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from strm_lightning.cli.user_code import import_user_code, take_imports
from strm_lightning.errors import InputError

# Lightning's own commands, and what they do here.
TRAINING: dict[str, str] = {
    "fit": "train on episodes, validate after each epoch, then test the best checkpoint",
    "validate": "accuracy on the validation episodes",
    "test": "accuracy on the test episodes, with its interval, and all that makes it comparable",
}
# Commands beside them: a function each, whose signature makes the options.
COMMANDS: dict[str, tuple[str, str]] = {
    "prepare": ("data.prepare:prepare", "decode every video once, into a frame cache that training reads from"),
    "doctor": ("data.checks.doctor:doctor", "hold a data folder against a split, and say whether training can start"),
    "classify": ("cli.classify:classify", "recognise one's own actions in videos, from a few clips of each"),
    "demo": ("cli.demo:demo", "the same as a web page on this machine"),
    "convert": ("cli.convert:convert", "turn a checkpoint of the released STRM or TRX code into one of ours"),
    "compare": ("cli.compare:compare", "difference of two test results on the same episodes, with its interval"),
    "plot": ("cli.plot:plot", "draw the pictures of runs"),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line; an `InputError` is printed in one line, with exit status 2.

    Other exceptions are defects and keep their traceback; ``STRM_TRACEBACK=1`` shows it for an `InputError` too.
    """
    try:
        _run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `strm … | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except InputError as error:
        if os.environ.get("STRM_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _run(args: Sequence[str] | None) -> None:
    names, arguments = take_imports(sys.argv[1:] if args is None else args)
    for user_code in names:
        import_user_code(user_code)
    name = arguments[0] if arguments else "--help"
    if name == "--version":
        from strm_lightning._version import __version__

        print(f"strm-lightning {__version__}")
    elif name in ("-h", "--help"):
        print(_overview())
    elif name in COMMANDS:
        _call(command(name), arguments[1:], f"strm {name}")
    elif name in TRAINING:
        from strm_lightning.cli.fit import run

        # LightningCLI warns when it is given arguments although there are some in sys.argv.
        run(None if args is None and not names else arguments, TRAINING)
    else:
        from strm_lightning.cli.parsing import near_names

        near = near_names(name, [*TRAINING, *COMMANDS])
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise InputError(f"there is no command {name!r}; {hint}all commands: strm --help")


def _overview() -> str:
    from strm_lightning import __doc__ as about

    commands = TRAINING | {name: text for name, (_, text) in COMMANDS.items()}
    lines = [f"  {name:<10}{text}" for name, text in commands.items()]
    first = (about or "").splitlines()[0]
    how = [
        "Options of a command: strm COMMAND --help.  Version: strm --version.",
        "Every command takes --import FILE_OR_MODULE: Python code that registers matching methods of your own.",
    ]
    return "\n".join(["usage: strm COMMAND [--OPTION=VALUE ...]", "", first, "", *lines, "", *how])


def _call(function: Callable[..., Any], arguments: list[str], program: str) -> None:
    """Call a function with a command line; ``--flag`` alone is true, and ``*args`` are what stands without a name."""
    from docstring_parser import parse
    from jsonargparse import auto_cli

    from strm_lightning.cli.parsing import Parser

    parameters = inspect.signature(function).parameters.values()
    flags = {f"--{p.name}" for p in parameters if p.annotation is bool}
    arguments = [_spelled(word, flags) for word in arguments]
    rest = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]
    if not rest:
        _tell(auto_cli(function, args=arguments, prog=program, as_positional=True, parser_class=Parser))
        return
    about = parse(function.__doc__ or "")
    parser = Parser(prog=program, description=about.short_description)
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
    module, function = COMMANDS[name][0].split(":")
    return getattr(importlib.import_module(f"strm_lightning.{module}"), function)
