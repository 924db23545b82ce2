"""The package as a whole: quick to import, lazy, and layered."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import warmup_peft

PACKAGE = Path(warmup_peft.__file__).parent
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "numpy")
WINGS = (
    "files",
    "settings",
    "method",
    "inference",
    "export",
    "evaluation",
    "training",
    "comparison",
    "cli",
)  # in order
MODULES = {
    "warmup_peft." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}


def imported_modules(source: str) -> set[str]:
    """Full names of what the source imports, anywhere in it; `from a import b` gives both a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def modules_below(*prefixes: str) -> list[str]:
    return [name for name in MODULES if is_within(name, prefixes)]


def is_within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def forbidden_imports(module: str, forbidden: tuple[str, ...]) -> set[str]:
    return {
        name for name in imported_modules(MODULES[module].read_text(encoding="utf-8")) if is_within(name, forbidden)
    }


def test_import_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, time\nstart = time.perf_counter()\nimport warmup_peft\n"
        f"print(time.perf_counter() - start, [name for name in {HEAVY} if name in sys.modules])"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, loaded = zip(*(run.stdout.strip().split(" ", 1) for run in runs))
    assert set(loaded) == {"[]"}
    assert min(map(float, seconds)) < 0.3


def test_settings_and_the_command_line_load_nothing_heavy():
    modules = [*modules_below("warmup_peft.settings"), "warmup_peft.cli.main"]
    code = f"import sys, {', '.join(modules)}\nprint([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", warmup_peft.__all__)
def test_public_names_resolve_to_the_things_of_that_name(name):
    assert getattr(warmup_peft, name).__name__ == name
    assert name in dir(warmup_peft)


def test_star_import_gives_the_public_names():
    namespace: dict = {}
    exec("from warmup_peft import *", namespace)
    assert set(warmup_peft.__all__) <= set(namespace)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="WarmupTrainer"):
        _ = warmup_peft.WarmupTrainer
    assert not hasattr(warmup_peft, "nothing")


def test_import_parser_sees_every_kind_of_import():
    source = "import a.b\nfrom c import d\ndef f():\n    from e.f import g as h\n"
    assert imported_modules(source) == {"a.b", "c", "c.d", "e.f", "e.f.g"}


@pytest.mark.parametrize("module", MODULES)
def test_a_wing_imports_only_from_itself_and_those_before_it(module):
    imports = imported_modules(MODULES[module].read_text(encoding="utf-8"))
    own = {name for name in imports if is_within(name, ("warmup_peft",))} - {"warmup_peft", "warmup_peft.__version__"}
    allowed = tuple(f"warmup_peft.{wing}" for wing in WINGS[: WINGS.index(module.split(".")[1]) + 1])
    assert {name for name in own if not is_within(name, allowed)} == set()


def test_every_module_lies_in_a_wing():
    assert {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"} == {
        "__init__.py", "README.md", "files.py", *WINGS[1:]
    }  # fmt: skip


@pytest.mark.parametrize("module", modules_below("warmup_peft.method"))
def test_method_knows_only_torch_transformers_settings_and_itself(module):
    imports = imported_modules(MODULES[module].read_text(encoding="utf-8"))
    own = {name for name in imports if is_within(name, ("warmup_peft",))}
    assert {name for name in own if not is_within(name, ("warmup_peft.method", "warmup_peft.settings"))} == set()
    assert {name for name in imports if is_within(name, ("trl", "peft"))} == set()


@pytest.mark.parametrize(
    "module", modules_below("warmup_peft.inference", "warmup_peft.export", "warmup_peft.evaluation")
)
def test_what_uses_an_adapter_knows_no_training(module):
    assert forbidden_imports(module, ("trl",)) == set()


@pytest.mark.parametrize("module", modules_below("warmup_peft.comparison.report"))
def test_reports_know_no_model(module):
    above = ("trl", "torch", "transformers", "warmup_peft.training", "warmup_peft.inference")
    assert forbidden_imports(module, above) == set()
