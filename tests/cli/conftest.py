"""Comparisons, for the tests of `compare`."""

from comparisons import argv, data, in_this_process  # noqa: F401
