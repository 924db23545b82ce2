"""The world of four words, for every test of this folder."""

from thinkers import thinker_folder  # noqa: F401
from tiny_world import world  # noqa: F401
