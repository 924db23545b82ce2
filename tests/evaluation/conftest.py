"""The tiny model that thinks, for every test of this folder."""

from thinkers import thinker_folder  # noqa: F401
