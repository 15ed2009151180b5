"""What checks the core's annotations, shapes among them, while the tests run: beartype, an int being a float as PEP 484 says."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
