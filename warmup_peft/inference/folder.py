"""`warmup_config.json`: what decoding needs to know of an adapter's training."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from warmup_peft.files import write_text

WARMUP_CONFIG_NAME = "warmup_config.json"


def check_folder(folder: str | Path) -> None:
    """Raise ValueError where there is no such folder."""
    if not Path(folder).is_dir():
        raise ValueError(f"The folder {folder} does not exist. Name the output_dir of a training or of a merge.")


@dataclass(frozen=True)
class WarmupConfig:
    """What decoding needs to know of an adapter's training.

    Attributes:
        warmup_separator: the separator's text, to be read by people.
        warmup_separator_ids: its token ids, which are what is inserted.
        max_warmup_length: W, in tokens. 0 is no warmup and no separator: plain `generate`.
        end_token_ids: tokens that ended warmups in training; those of the generation config end them too.
    """

    warmup_separator: str
    warmup_separator_ids: list[int]
    max_warmup_length: int
    end_token_ids: list[int] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Tokens that a warmup and the separator take at most."""
        return self.max_warmup_length and self.max_warmup_length + len(self.warmup_separator_ids)

    def save(self, folder: str | Path) -> None:
        write_text(Path(folder, WARMUP_CONFIG_NAME), json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def is_in(folder: str | Path) -> bool:
        return Path(folder, WARMUP_CONFIG_NAME).is_file()

    @classmethod
    def load(cls, folder: str | Path) -> WarmupConfig:
        """Read `warmup_config.json` of a local folder; ValueError where there is none, or a broken one."""
        check_folder(folder)
        path = Path(folder, WARMUP_CONFIG_NAME)
        if not cls.is_in(folder):
            raise ValueError(
                f"{folder} holds no {WARMUP_CONFIG_NAME}, so it is no warmup adapter (or its training was cut off). "
                "Name the folder that the training wrote; plain `generate` decodes other models."
            )
        try:
            config = cls(**json.loads(path.read_text(encoding="utf-8")))
            numbers = [*config.warmup_separator_ids, *config.end_token_ids, config.max_warmup_length]
            if not all(isinstance(number, int) for number in numbers):  # they become code in the folder and its card
                raise TypeError("max_warmup_length and token ids must be whole numbers")
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}). Take it anew from the training's folder.") from error
        return config
