"""Errors that a user can correct.

The commands print an `InputError` in one line and exit with status 2. Any other exception is a bug and keeps its
traceback. Each class is also a subclass of the built-in exception for the same error.
"""


class InputError(ValueError):
    """An option, a file or a folder is wrong; the message says what is wrong, where, and what to do."""


class InputTypeError(InputError, TypeError):
    """An argument is of the wrong type."""


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder does not exist."""


class MissingPackageError(InputError, ImportError):
    """An optional dependency is not installed."""


class WriteError(InputError, OSError):
    """A file cannot be written."""


class InputKeyError(InputError, KeyError):
    """A name does not exist."""

    __str__ = Exception.__str__  # KeyError would print the repr of the message
