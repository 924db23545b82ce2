"""The world of four words, and an empty cache of the Hub, for every test of this folder."""

from chat_world import chat_folder  # noqa: F401
from hub_cache import cache  # noqa: F401
from tiny_world import world  # noqa: F401
