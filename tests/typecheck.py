"""The type checker of the import hook in `conftest`: beartype that takes an int for a float, as PEP 484 does."""

from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
