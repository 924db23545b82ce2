"""The world of four words, for every test of this folder."""

from chat_world import chat_folder  # noqa: F401
from tiny_world import world  # noqa: F401
