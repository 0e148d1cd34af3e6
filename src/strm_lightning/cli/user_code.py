"""Import a user's file or module, so that it registers matching methods."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from strm_lightning.errors import InputError, MissingFileError


def import_user_code(name: str) -> None:
    """Import a Python file, or a module by its name.

    The folder of a file is added to ``sys.path``, so that child processes can import the file as a module.

    Args:
        name: a file such as ``methods/mine.py``, or a module such as ``mypackage.methods``.

    Raises:
        MissingFileError: the file does not exist.
        InputError: the module does not exist, or another module has the name of the file.
    """
    if not (name.endswith(".py") or "/" in name):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module exists, but imports a module that does not
            raise InputError(
                f"--import {name}: there is no such module; give a .py file or the name of an installed module"
            ) from error
        return
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise MissingFileError(f"--import {name}: {'is a folder' if path.is_dir() else 'no such file'}")
    if not path.stem.isidentifier():
        raise InputError(f"--import {name}: rename the file; the name may contain letters, digits and underscores only")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    module = importlib.import_module(path.stem)
    if Path(getattr(module, "__file__", None) or "").resolve() != path:
        raise InputError(f"--import {name}: there is another module named {path.stem!r}; rename the file")


def take_imports(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split ``--import NAME`` and ``--import=NAME`` from a command line.

    Returns:
        The names to import, and the other arguments.

    Raises:
        InputError: ``--import`` without a name.
    """
    names, others = [], []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--import":
            value = next(remaining, None)
            if value is None:
                raise InputError("--import: give a Python file or a module")
            names.append(value)
        elif argument.startswith("--import="):
            names.append(argument.partition("=")[2])
        else:
            others.append(argument)
    return names, others
