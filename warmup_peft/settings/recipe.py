"""A recipe: the options that a YAML file sets, and those that replace them. Loads neither torch nor trl."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from warmup_peft.settings.parsing import option_hints, read_options, settings_of, typed


@dataclass(frozen=True)
class Recipe:
    """The options that are set, as typed values; every other option has its default.

    Attributes:
        kinds: dataclasses whose fields are the options.
        file: the options that the YAML file sets.
        overrides: the options that are set on the command line or by `with_overrides`; they win over the file's.
    """

    kinds: tuple[type, ...]
    file: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, argv: Sequence[str], *kinds: type) -> Recipe:
        """The recipe of a command line with `--config`.

        Raises:
            ValueError: an unknown option, a value of the wrong kind, or a file that is missing or no YAML mapping.
        """
        return cls(kinds, *read_options(kinds, argv))

    @property
    def names(self) -> list[str]:
        """Every option that there is."""
        return list(option_hints(self.kinds))

    @property
    def values(self) -> dict[str, Any]:
        return {**self.file, **self.overrides}

    def settings(self) -> tuple[Any, ...]:
        """An instance of each dataclass. Raises ValueError for a value that is missing or cannot work."""
        return settings_of(self.kinds, self.values)

    def with_overrides(self, overrides: Mapping[str, Any]) -> Recipe:
        """The recipe with these values. Text is converted, as on the command line.

        Raises:
            ValueError: an unknown option, or a value of the wrong kind.
        """
        more = typed(self.kinds, overrides, "The changed recipe")
        return dataclasses.replace(self, overrides={**self.overrides, **more})

    def restricted_to(self, *kinds: type) -> Recipe:
        """The recipe with the options of these dataclasses only."""
        return dataclasses.replace(self._filtered(option_hints(kinds).__contains__), kinds=kinds)

    def without(self, *names: str) -> Recipe:
        """The recipe with these options at their defaults."""
        return self._filtered(lambda name: name not in names)

    def _filtered(self, is_kept: Callable[[str], bool]) -> Recipe:
        file, overrides = (
            {name: value for name, value in values.items() if is_kept(name)} for values in (self.file, self.overrides)
        )
        return dataclasses.replace(self, file=file, overrides=overrides)
