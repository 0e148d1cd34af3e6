"""Checks of options, and phrases of error messages."""

from collections.abc import Iterable, Sized
from difflib import get_close_matches
from typing import Any

from strm_lightning.errors import InputError


def near_names(word: str, names: Iterable[str]) -> list[str]:
    """Return up to three names similar to ``word``, most similar first.

    Examples:
        >>> near_names("otm", ["otam", "mean"])
        ['otam']
    """
    return get_close_matches(word, list(names), n=3, cutoff=0.6)


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return ``"did you mean 'a' or 'b'? "``, or an empty string if no name is similar."""
    near = near_names(word, names)
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""


def check_choice(name: str, value: object, choices: Iterable[Any]) -> None:
    """Raise an `InputError` unless ``value`` is one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        hint = did_you_mean(value, map(str, choices)) if isinstance(value, str) else ""
        raise InputError(f"{name} {value!r}: {hint}choose {' or '.join(map(repr, choices))}")


def check_positive(**values: float | None) -> None:
    """Raise an `InputError` for a value that is not above 0; None is allowed."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise InputError(f"{name} is {value}: give a positive number")


def check_not_negative(**values: float) -> None:
    """Raise an `InputError` for a value below 0 or NaN."""
    for name, value in values.items():
        if not value >= 0:
            raise InputError(f"{name} is {value}: give 0 or a positive number")


def some_of(claim: str, items: Iterable[str], most: int = 3) -> str:
    """Return ``"claim: a, b, c and 4 more"``, items sorted.

    Examples:
        >>> some_of("missing", ["d", "b", "a", "c"])
        'missing: a, b, c and 1 more'
    """
    items = sorted(items)
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{claim}: {', '.join(items[:most])}{rest}"


def count_of(items: Sized, noun: str) -> str:
    """Return a count with its noun.

    Examples:
        >>> count_of(["wave", "clap"], "class")
        '2 classes'
    """
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{len(items)} {noun if len(items) == 1 else plural}"


def format_bytes(number: float) -> str:
    """Return a size in GB or MB (powers of 1000).

    Examples:
        >>> format_bytes(1.5e9)
        '1.5 GB'
    """
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
