"""The command ``strm``, also installed as ``lightning``."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from strm_lightning.cli.user_code import import_user_code, take_imports
from strm_lightning.errors import InputError
from strm_lightning.messages import did_you_mean

# Descriptions of the commands of LightningCLI.
TRAINING: dict[str, str] = {
    "fit": "train on episodes, validate after each epoch, test the best checkpoint",
    "validate": "compute the accuracy on the validation episodes",
    "test": "compute the accuracy on the test episodes with its 95 % interval; write results.json",
}
# The function and the description of every other command; the signature of the function defines the options.
COMMANDS: dict[str, tuple[str, str]] = {
    "prepare": ("data.prepare:prepare", "decode all videos once into a frame cache for training"),
    "doctor": ("data.checks.doctor:doctor", "check the videos in a folder against a split before training"),
    "classify": ("cli.classify:classify", "recognise actions in videos from a few example clips of each class"),
    "support": ("cli.edit_support:support", "list the examples in a file; add, remove and rename classes"),
    "export": ("cli.export:export", "export a classifier to ONNX, with a program that runs it without torch"),
    "demo": ("cli.demo:demo", "classify on a local web page"),
    "convert": ("cli.convert:convert", "convert a checkpoint of the official STRM or TRX code"),
    "publish": ("cli.publish:publish", "write a model folder with a model card from a checkpoint"),
    "compare": (
        "cli.compare:compare",
        "compare test results on the same episodes, with 95 % intervals",
    ),
    "plot": ("cli.plot:plot", "plot confusion matrices, accuracies and learning curves of runs"),
    "completion": ("cli.completion:completion", "print a script that completes commands and options in a shell"),
    "recipes": ("cli.recipes:recipes", "list the shipped configurations, or copy them to a folder"),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line; print an `InputError` in one line and exit with status 2.

    Other exceptions keep their traceback. With ``STRM_TRACEBACK=1`` an `InputError` keeps it too.
    """
    try:
        _run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe, as in `strm … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except InputError as error:
        if os.environ.get("STRM_TRACEBACK"):
            raise
        print(f"error: {_message(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def _message(error: InputError) -> str:
    """The message of an error in one line; torch puts a traceback around an error of a worker process."""
    lines = str(error).strip().splitlines()
    if "Original Traceback" in str(error):
        return lines[-1].partition(": ")[2]
    return " ".join(lines)


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

        run(arguments, TRAINING)
    else:
        hint = did_you_mean(name, [*TRAINING, *COMMANDS])
        raise InputError(f"there is no command {name!r}; {hint}all commands: strm --help")


def _overview() -> str:
    from strm_lightning import __doc__ as about

    commands = TRAINING | {name: text for name, (_, text) in COMMANDS.items()}
    lines = [f"  {name:<12}{text}" for name, text in commands.items()]
    first = (about or "").splitlines()[0]
    how = [
        "Options of a command: strm COMMAND --help.  Version: strm --version.",
        "Every command accepts --import FILE_OR_MODULE: Python code that registers your own matching methods.",
    ]
    return "\n".join(["usage: strm COMMAND [--OPTION=VALUE ...]", "", first, "", *lines, "", *how])


def _call(function: Callable[..., Any], arguments: list[str], program: str) -> None:
    """Call a function with a command line; ``--flag`` is ``--flag=true``, positional arguments go to ``*args``."""
    from jsonargparse import auto_cli

    from strm_lightning.cli.parsing import Parser

    flags = {f"--{p.name}" for p in inspect.signature(function).parameters.values() if p.annotation is bool}
    arguments = [_normalize(argument, flags) for argument in arguments]
    positional = _variable(function)
    if positional is None:
        _print_report(auto_cli(function, args=arguments, prog=program, as_positional=True, parser_class=Parser))
        return
    options = vars(_variable_parser(function, program).parse_args(arguments))
    _print_report(function(*options.pop(positional), **options))


def _variable(function: Callable[..., Any]) -> str | None:
    """Return the name of the parameter ``*args``."""
    parameters = inspect.signature(function).parameters.values()
    return next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)


def _variable_parser(function: Callable[..., Any], program: str) -> Any:
    """Return the parser of a function with ``*args``, which ``auto_cli`` does not support."""
    from docstring_parser import parse

    from strm_lightning.cli.parsing import Parser

    positional = str(_variable(function))
    docstring = parse(function.__doc__ or "")
    parser = Parser(prog=program, description=docstring.short_description)
    texts = {p.arg_name: p.description for p in docstring.params}
    parser.add_argument(positional, nargs="*", help=texts[positional])
    parser.add_function_arguments(function)
    return parser


def parser_of(name: str) -> Any:
    """Return the parser of a command."""
    from jsonargparse import auto_cli, capture_parser

    from strm_lightning.cli.parsing import Parser

    if name in TRAINING:
        from strm_lightning.cli.fit import run

        parser: Any = capture_parser(run, [name], TRAINING)
        return parser._subcommands_action.choices[name]
    function, program = command(name), f"strm {name}"
    if _variable(function) is not None:
        return _variable_parser(function, program)
    return capture_parser(auto_cli, function, args=[], prog=program, as_positional=True, parser_class=Parser)


def _print_report(report: Any) -> None:
    """Print the return value of a command; exit with its ``status`` if that is not 0."""
    if report is not None:
        print(report)
        if status := getattr(report, "status", 0):
            raise SystemExit(status)


def _normalize(argument: str, flags: set[str]) -> str:
    """Replace ``--save-support`` by ``--save_support``, and ``--flag`` by ``--flag=true``."""
    name, equals, value = argument.partition("=")
    name = name.replace("-", "_").replace("__", "--", 1) if argument.startswith("--") else name
    return f"{name}=true" if name in flags and not equals else name + equals + value


def command(name: str) -> Callable[..., Any]:
    """Return the function of a command."""
    module, function = COMMANDS[name][0].split(":")
    return getattr(importlib.import_module(f"strm_lightning.{module}"), function)
