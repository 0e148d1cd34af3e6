"""``strm recipes``: the YAML files of ``experiments/``, which ``--config`` finds by name."""

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import strm_lightning
from strm_lightning.errors import InputError, MissingFileError
from strm_lightning.fileio import write_atomically, write_errors
from strm_lightning.messages import count_of, did_you_mean

_FOLDER = "experiments"
_SUFFIX = ".yaml"
_SWEEPS = "sweeps/"  # files of W&B, no configurations
_OF_SCRIPTS = ("benchmarks", "methods", "notebooks")  # not in the wheel; their YAML files are read by scripts


def recipe_folder() -> Path:
    """Return the folder of the recipes: inside the installed package, or ``experiments/`` of the checkout.

    Raises:
        MissingFileError: the package is neither installed from a wheel nor in a checkout.
    """
    package = Path(strm_lightning.__file__).parent
    for folder in (package / "recipes", package.parents[1] / _FOLDER):
        if (folder / f"quickstart{_SUFFIX}").is_file():
            return folder
    raise MissingFileError(f"{package / 'recipes'}: the recipes are missing; install the package again")


def recipe_names() -> list[str]:
    """Return the names of all recipes, such as ``kinetics`` and ``hardware/gpu24``, sorted."""
    folder = recipe_folder()
    files = (path.relative_to(folder) for path in folder.rglob(f"*{_SUFFIX}"))
    return sorted(path.with_suffix("").as_posix() for path in files if path.parts[0] not in _OF_SCRIPTS)


def find_recipe(name: str) -> str:
    """Return the path of a configuration: the file itself, or else the recipe of that name.

    Args:
        name: a path, or a recipe as ``kinetics``, ``kinetics.yaml`` or ``experiments/kinetics.yaml``.

    Raises:
        MissingFileError: there is neither a file nor a recipe.
    """
    if Path(name).exists() or not re.fullmatch(r"[\w./~+-]+", name):  # other text may be YAML
        return name
    recipe = name.removeprefix(f"{_FOLDER}/").removesuffix(_SUFFIX)
    if recipe in (names := recipe_names()):
        return str(recipe_folder() / f"{recipe}{_SUFFIX}")
    near = did_you_mean(recipe, [known for known in names if not known.startswith(_SWEEPS)])
    raise MissingFileError(
        f"--config {name}: no such file, and no recipe of that name; {near}all recipes: strm recipes"
    )


def find_recipes(arguments: Sequence[str]) -> list[str]:
    """Replace the names of recipes after ``--config`` and ``-c`` in a command line by their paths."""
    found: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if found and found[-1] in ("--config", "-c"):
            argument = find_recipe(argument)
        elif equals and name in ("--config", "-c"):
            argument = f"{name}={find_recipe(value)}"
        found.append(argument)
    return found


def recipes(copy_to: str | None = None) -> None:
    """List the recipes, or copy them to a folder.

    Args:
        copy_to: new folder for copies of all recipes, to edit them; null lists them.
    """
    folder = recipe_folder()
    if copy_to is None:
        names = recipe_names()
        width = max(map(len, names))
        print("Use as --config NAME; several --config are combined, later ones win.")
        print(f"{_SWEEPS}*: for `wandb sweep FILE`, after `strm recipes --copy_to FOLDER`.\n")
        for name in names:
            print(f"  {name:<{width}}  {_first_sentence(folder / f'{name}{_SUFFIX}')}")
        return
    target = Path(copy_to)
    if target.exists():
        raise InputError(f"--copy_to {target}: exists already; give a new folder")
    for name in recipe_names():
        path = target / f"{name}{_SUFFIX}"
        with write_errors(path):
            write_atomically(path, (folder / f"{name}{_SUFFIX}").read_bytes())
    print(f"{target}: {count_of(recipe_names(), 'recipe')}")


def _first_sentence(path: Path) -> str:
    """Return the first sentence of the comment at the start of a recipe, without the mark at its end."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    text = " ".join(line.strip("# ") for line in lines)
    sentence = re.match(r"(?:\([^)]*\)|[^(])*?[.:;](?=\s|$)", text)  # marks within brackets end no sentence
    return (sentence[0] if sentence else text).rstrip(".:;")
