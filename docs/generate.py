"""Parts of pages that the build generates: the modules of the API and the help of the commands.

A line ``<!-- modules: PACKAGE ... -->`` in a page becomes the documentation of these modules; ``-PACKAGE`` leaves
modules out. ``<!-- commands -->`` becomes the help texts of all commands.
"""

import io
import os
import pkgutil
import re
from contextlib import redirect_stdout
from importlib import import_module

PACKAGE = "strm_lightning"


def modules_of(name: str) -> list[str]:
    """Return a module, or all modules of a package and its packages, without ``__main__``."""
    module = import_module(name)
    if not hasattr(module, "__path__"):
        return [name]
    inside = sorted(info.name for info in pkgutil.walk_packages(module.__path__, f"{name}."))
    return [name, *(found for found in inside if not found.endswith("__main__"))]


def api(names: str) -> str:
    """Return the Markdown that documents the modules of ``names``, separated by spaces."""
    without = tuple(name.removeprefix("-") for name in names.split() if name.startswith("-"))
    modules = [found for name in names.split() if not name.startswith("-") for found in modules_of(name)]
    sections = []
    for module in modules:
        if f"{module}.".startswith(tuple(f"{name}." for name in without)):
            continue
        # A package documents no members: it only imports names from its modules.
        members = "" if hasattr(import_module(module), "__path__") else "\n   :members:\n   :show-inheritance:"
        directive = f"```{{eval-rst}}\n.. automodule:: {module}{members}\n```"
        sections.append(f"## {module.removeprefix(f'{PACKAGE}.')}\n\n{directive}")
    return "\n\n".join(sections)


def help_of(name: str, option: str) -> str:
    """Return the help text of a command, 100 columns wide and without this machine's folders."""
    from strm_lightning.cli.main import main

    out = io.StringIO()
    columns, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "100"
    try:
        with redirect_stdout(out):
            main([name, option])
    except SystemExit:
        pass
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return out.getvalue().strip()


def commands() -> str:
    """Return the Markdown with the help text of every command; those of LightningCLI also have the long one."""
    from strm_lightning.cli.main import COMMANDS, TRAINING

    sections = []
    for name, text in [*TRAINING.items(), *((name, text) for name, (_, text) in COMMANDS.items())]:
        parts = [f"## strm {name}\n\n{text[:1].upper()}{text[1:]}.\n\n```text\n{help_of(name, '--help')}\n```"]
        if name in TRAINING:
            parts.append(f"### All options of {name}\n\n```text\n{help_of(name, '--help-all')}\n```")
        sections += parts
    return "\n\n".join(sections)


def expand(text: str) -> str:
    """Replace the marks of a page."""
    text = re.sub(r"^<!-- modules: ([\w. -]+) -->$", lambda match: api(match[1]), text, flags=re.MULTILINE)
    return re.sub(r"^<!-- commands -->$", lambda _: commands(), text, flags=re.MULTILINE)
