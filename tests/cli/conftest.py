"""Runs and comparisons, for the tests of the commands."""

from chat_world import chat_folder  # noqa: F401
from comparisons import argv, data, in_this_process  # noqa: F401
from pages import quick_pictures  # noqa: F401
from trainings import finished, load_no_model, puzzle_data, run  # noqa: F401
