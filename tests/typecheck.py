"""The type checker of the tests: beartype, taking a whole number where a float is asked for, as PEP 484 has it."""

from beartype import BeartypeConf, beartype

typecheck = beartype(conf=BeartypeConf(is_pep484_tower=True))
