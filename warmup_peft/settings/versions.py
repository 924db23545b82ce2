"""What to say where another package is of a version that this one does not work with. Loads no torch."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import PackageNotFoundError, requires, version

MOVING = ("accelerate", "datasets", "peft", "torch", "transformers", "trl")  # whose private parts are used


def with_fix(error: ImportError) -> ImportError:
    """An error that names package, version and fix, where one of `MOVING` lacks what is imported; else the same."""
    package = (error.name or "").split(".")[0]
    if package not in MOVING or (error.name == package and isinstance(error, ModuleNotFoundError)):
        return error
    return ImportError(sentence(str(error), package), name=error.name)


def check_overridden(ours: type, theirs: type, names: tuple[str, ...], *packages: str) -> None:
    """Every method that `ours` stands in for is there in `theirs`, its base, and takes what ours takes.

    Args:
        packages: whose versions the methods depend on.

    Raises:
        ImportError: one is not, or takes other arguments: ours would never be called, or fail in mid-training.
    """
    for name in names:
        method = getattr(theirs, name, None)
        if method is None:
            what = f"{theirs.__name__}.{name} is gone"
        elif not takes_all(getattr(ours, name), method):
            what = f"{theirs.__name__}.{name} takes other arguments"
        else:
            continue
        raise ImportError(sentence(what, *packages))


def takes_all(ours, theirs) -> bool:
    """Whether every argument that `theirs` names may be given to `ours`."""
    own = inspect.signature(ours).parameters
    if any(p.kind is p.VAR_POSITIONAL for p in own.values()):
        return True
    return [name for name in inspect.signature(theirs).parameters if name not in own] == []


def sentence(what: str, *packages: str) -> str:
    """What is wrong with the packages that are installed, and how to get others."""
    found = " and ".join(f"{package} {version(package)}" for package in packages)
    needed = " ".join(f"'{requirement(package)}'" for package in packages)
    return f"This warmup_peft does not work with {found}: {what}. Run: pip install {needed}, or a newer warmup_peft."


def requirement(package: str) -> str:
    """What this package asks for, such as trl<2,>=1.16."""
    try:
        needed = requires("warmup_peft") or ()
    except PackageNotFoundError:
        needed = ()
    return next((x for x in needed if re.match(rf"{package}\b", x) and "extra" not in x), package)
