"""``strm completion``: a script that completes commands and options in a shell."""

import argparse
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from strm_lightning.errors import MissingPackageError
from strm_lightning.models.matching import base


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print a script that completes commands, options and choices.

    Args:
        shell: the shell.

    Raises:
        MissingPackageError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise MissingPackageError(
            'strm completion needs shtab: in a checkout, run pip install ".[completion]"'
        ) from error
    print(shtab.complete(_options_of_all_commands(shtab.FILE), shell))


def _options_of_all_commands(files: Any) -> argparse.ArgumentParser:
    """Return a plain parser with the commands and options of ``strm``, which shtab can read."""
    from strm_lightning.cli.main import COMMANDS, TRAINING, parser_of

    texts = TRAINING | {name: text for name, (_, text) in COMMANDS.items()}
    top = argparse.ArgumentParser(prog="strm")
    top.add_argument("--version", action="store_true", help="print the version")
    subparsers = top.add_subparsers()
    for name, text in texts.items():
        parser = subparsers.add_parser(name, help=_plain(text), add_help=False)
        for action in parser_of(name)._actions:
            options = [option for option in action.option_strings if not option.endswith("+")]
            if not options and name in TRAINING:
                continue  # LightningCLI's options are all named
            if action.nargs == 0:
                parser.add_argument(*options, action="store_true", help=_plain(action.help))
                continue
            names, nargs = (options, None) if options else ([action.dest], action.nargs)
            choices = _choices(action)
            added = parser.add_argument(*names, nargs=nargs, choices=choices, help=_plain(action.help))
            if choices is None:
                added.complete = files  # type: ignore[attr-defined]  # shtab reads it
        parser.add_argument("--import", help="Python file or module to import").complete = files  # type: ignore[attr-defined]
    return top


def _plain(text: str | None) -> str:
    """Return the first sentence of a help text, without characters that argparse or a shell interprets."""
    first = " ".join((text or "").split()).partition(". ")[0]
    return "".join(c for c in first if c not in "%`'\"[]{}$\\")


def _choices(action: Any) -> list[str] | None:
    """Return the values of an option that has a fixed set of them."""
    if action.choices:
        return list(dict.fromkeys(map(str, action.choices)))
    if action.dest == "model.matching":
        return base.matching_names()
    kind = getattr(action, "_typehint", None)  # jsonargparse's; other parsers have none
    kinds = [k for k in (get_args(kind) if get_origin(kind) is not Literal else (kind,)) if k is not NoneType] or [kind]
    if kinds == [bool]:
        return ["true", "false"]
    if all(get_origin(k) is Literal for k in kinds):
        return list(dict.fromkeys(str(choice) for k in kinds for choice in get_args(k)))
    return None
