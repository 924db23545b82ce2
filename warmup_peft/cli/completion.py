"""`warmup-peft completion`: a script that completes commands, options, their choices and the names of recipes.

The script holds all words, so that completing starts no Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from warmup_peft.cli.main import COMMANDS, Command
from warmup_peft.settings.arguments import CompletionArguments
from warmup_peft.settings.early import training_fields
from warmup_peft.settings.parsing import option_hints, parse_one
from warmup_peft.settings.shipped import shipped_recipes

BASH = """\
_warmup_peft() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "$before" in
{values}
            completion) words="{shells}" ;;
        esac
        if [ -z "$words" ] && [ "${{word:0:1}}" = "-" ]; then
            case "${{COMP_WORDS[1]}}" in
{options}
            esac
        fi
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o bashdefault -o default -F _warmup_peft warmup-peft
"""


def run(argv: Sequence[str]) -> None:
    print(SCRIPTS[parse_one(CompletionArguments, argv).shell](), end="")


def hints_of(command: Command) -> dict[str, Any]:
    """Every option of a command, with its type."""
    own = option_hints(command.options)
    return {"config": str, **trls_hints(), **own} if command.has_trls else own


@cache
def trls_hints() -> dict[str, Any]:
    from trl import ModelConfig, ScriptArguments  # which do not import torch

    return {**(training_fields() or {}), **option_hints((ScriptArguments, ModelConfig))}


def choices_of(hint: Any) -> tuple[str, ...]:
    """The values of a Literal, or of one that may be None, or of a truth value."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if bool in kinds:
        return "true", "false"
    return tuple(str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind))


def words_after_options() -> dict[str, tuple[str, ...]]:
    """The values of each option that has choices, and of `config` and `recipe`."""
    hints = {name: hint for command in COMMANDS.values() for name, hint in hints_of(command).items()}
    choices = {name: choices_of(hint) for name, hint in hints.items()}
    recipes = tuple(shipped_recipes())
    return {**{name: words for name, words in choices.items() if words}, "config": recipes, "recipe": recipes}


def bash() -> str:
    values = words_after_options().items()
    options = {name: " ".join(f"--{option}" for option in hints_of(command)) for name, command in COMMANDS.items()}
    return BASH.format(
        commands=" ".join(COMMANDS),
        shells=" ".join(SCRIPTS),
        values="\n".join(f'            --{name}) words="{" ".join(words)}" ;;' for name, words in values),
        options="\n".join(f'                {name}) words="{words}" ;;' for name, words in options.items()),
    )


def zsh() -> str:
    return "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n" + bash()


def fish() -> str:
    values = words_after_options()
    lines = ["complete -c warmup-peft -n __fish_use_subcommand -f"]
    for name, command in COMMANDS.items():
        does = command.help.partition(":")[0].replace("'", "")
        lines.append(f"complete -c warmup-peft -n __fish_use_subcommand -a {name} -d '{does}'")
        seen = f"complete -c warmup-peft -n '__fish_seen_subcommand_from {name}' -l"
        lines += [f"{seen} {option} -r{fish_words(values.get(option, ()))}" for option in hints_of(command)]
    shells = " ".join(SCRIPTS)
    lines.append(f"complete -c warmup-peft -n '__fish_seen_subcommand_from completion' -f -a '{shells}'")
    return "\n".join(lines) + "\n"


def fish_words(words: Sequence[str]) -> str:
    return f" -a '{' '.join(words)}'" if words else ""


SCRIPTS: Mapping[str, Callable[[], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
