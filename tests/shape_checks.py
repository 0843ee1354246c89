"""The checker that reads the types and shapes in the package's signatures while the tests run; an int is a float here as for Python's own tools."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
