"""What tests of the pages share with those of the program."""

from tests.bench.conftest import scripted

__all__ = ["scripted"]
