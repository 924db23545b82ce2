"""`completion`: the script of each shell, and what bash completes with it."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from warmup_peft.cli.completion import SCRIPTS, hints_of
from warmup_peft.cli.main import COMMANDS
from warmup_peft.settings.shipped import shipped_recipes

SYNTAX = {"bash": ["bash", "-n"], "zsh": ["zsh", "-n"], "fish": ["fish", "--no-execute"]}
ASK = '{script}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _warmup_peft; printf "%s\\n" "${{COMPREPLY[@]}}"'


def completed(*words: str) -> set[str]:
    """What bash offers for the last word."""
    command = ["bash", "-c", ASK.format(script=SCRIPTS["bash"]()), "bash", "warmup-peft", *words]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_choices_and_recipes():
    assert completed("") == set(COMMANDS)
    assert completed("ev") == {"evaluate"}
    assert completed("train", "--num_w") == {"--num_warmups", "--num_warmups_to_print"}
    assert "--learning_rate" in completed("train", "--learn")
    assert completed("merge", "--merge_base", "") == {"dequantized", "original"}
    assert completed("train", "--bf16", "t") == {"true"}
    assert completed("train", "--config", "") == set(shipped_recipes())
    assert completed("completion", "") == {"bash", "zsh", "fish"}
    assert completed("train", "--output_dir", "") == set()  # files, as bash completes by default


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_script_has_every_command_and_option_and_is_valid(shell, tmp_path):
    text = SCRIPTS[shell]()
    words = set(text.replace('"', " ").replace("--", " ").split())
    assert set(COMMANDS) <= words
    assert {option for command in COMMANDS.values() for option in hints_of(command)} <= words
    if shutil.which(shell):
        path = tmp_path / "script"
        path.write_text(text)
        subprocess.run([*SYNTAX[shell], str(path)], check=True)


def test_writing_a_script_imports_no_torch():
    code = (
        "import sys\nfrom warmup_peft.cli.main import main\nmain(['completion', 'zsh'])\nprint('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[0].startswith("autoload ")
    assert run.stdout.splitlines()[-1] == "False"
