"""The world of four words, for every test of this folder."""

from tiny_world import world  # noqa: F401
