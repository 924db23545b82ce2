"""Comparisons, for every test of this folder."""

from comparisons import argv, data, in_this_process  # noqa: F401
from pages import quick_pictures  # noqa: F401
