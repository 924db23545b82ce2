"""The tiny model that thinks, for every test of this folder."""

from chat_world import chat_folder  # noqa: F401
