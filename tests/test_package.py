"""The package as a whole: quick to import, lazy, and layered."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.quantizers import HfQuantizer
from trl import SFTTrainer

import warmup_peft
from warmup_peft import WarmupSFTTrainer
from warmup_peft.cli.doctor import REQUIRED
from warmup_peft.cli.main import COMPARE_PACKAGES
from warmup_peft.training.trainer import STANDS_IN_FOR

PACKAGE = Path(warmup_peft.__file__).parent
TESTS = Path(__file__).parent
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
GROUND_FLOOR = ("warmup_peft.files", "warmup_peft.settings")
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
        "__init__.py", "README.md", "files.py", "py.typed", *WINGS[1:]
    }  # fmt: skip


@pytest.mark.parametrize("module", modules_below("warmup_peft.method"))
def test_method_knows_only_torch_transformers_files_settings_and_itself(module):
    imports = imported_modules(MODULES[module].read_text(encoding="utf-8"))
    own = {name for name in imports if is_within(name, ("warmup_peft",))}
    assert {name for name in own if not is_within(name, ("warmup_peft.method", *GROUND_FLOOR))} == set()
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


# ---- Files ----

WRITES = re.compile(r"\.write_text\(|\.write_bytes\(|json\.dump\(|\bopen\([^)]*[\"'][wax]")


def test_only_files_py_writes_to_a_file():
    """So that a file is whole, or as it was before, wherever a process ends."""
    logs = {"comparison.runner"}  # what a run said until then
    found = {
        (module.removeprefix("warmup_peft."), match[0])
        for module, path in MODULES.items()
        for match in WRITES.finditer(path.read_text(encoding="utf-8"))
    }
    assert {(module, words) for module, words in found if module not in {"files", *logs}} == set()


# ---- Tests ----

OF_THE_WHOLE_HOUSE = (
    "test_makefile.py", "test_package.py", "test_project.py", "test_readmes.py", "test_wheel.py", "recipes", "faults",
    "gpu",
)  # fmt: skip


def is_test_of(test: str, module: str) -> bool:
    """Whether `test` is test_<module>.py or test_<module>_<aspect>.py."""
    folder, name = Path(module).parent, Path(module).stem
    return Path(test).parent == folder and f"{Path(test).stem}_".startswith(f"test_{name}_")


def test_every_module_has_its_test_file_and_every_test_file_its_module():
    modules = {str(path.relative_to(PACKAGE)) for path in MODULES.values()} - {"cli/__main__.py"}
    tests = {str(path.relative_to(TESTS)) for path in TESTS.rglob("test_*.py")}
    tests = {test for test in tests if not test.startswith(OF_THE_WHOLE_HOUSE)}
    assert {module for module in modules if not any(is_test_of(test, module) for test in tests)} == set()
    assert {test for test in tests if not any(is_test_of(test, module) for module in modules)} == set()


def test_no_test_imports_from_another():
    for path in TESTS.rglob("test_*.py"):
        names = imported_modules(path.read_text(encoding="utf-8"))
        assert {name for name in names if name.split(".")[-1].startswith("test_")} == set(), path


# ---- Packages ----

NOT_IMPORTED = {"accelerate", "bitsandbytes"}  # transformers uses them
OF_ONE_METRIC = {"bert_score", "comet"}  # large, and named where a task asks for them


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> dict[str, set[str]]:
    """Names of the packages that pyproject.toml declares: of the core, and of each extra."""
    project = tomllib.loads((TESTS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    return {group: {normalised(re.match(r"[\w.-]+", each)[0]) for each in names} for group, names in groups.items()}


def imported_packages(*, at_once: bool = False, outside: tuple[str, ...] = ()) -> dict[str, str]:
    """Packages that the source imports, with one module that does; `at_once` leaves out imports inside functions."""
    found = {}
    for module in (module for module in MODULES if not is_within(module, outside)):
        tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
        source = "\n".join(ast.unparse(node) for node in tree.body if not at_once or is_import(node))
        found |= {name.split(".")[0]: module for name in imported_modules(source)}
    return {name: module for name, module in found.items() if name not in {*sys.stdlib_module_names, "warmup_peft"}}


def is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


DISTRIBUTIONS = packages_distributions()


def distribution_of(name: str) -> str:
    return normalised(DISTRIBUTIONS[name][0])


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    imported = {distribution_of(name) for name in imported_packages() if name not in OF_ONE_METRIC}
    groups = declared()
    assert imported | NOT_IMPORTED == groups["core"] | groups["compare"] | groups["eval"] | groups["qlora"]
    assert groups["serve"] == {"transformers"}  # with its extra "serving"


def test_only_comparisons_and_lm_eval_import_more_than_the_core_at_once():
    outside = ("warmup_peft.comparison", "warmup_peft.cli.compare", "warmup_peft.cli.inspect")
    packages = imported_packages(at_once=True, outside=(*outside, "warmup_peft.evaluation.lm_eval_model"))
    core = declared()["core"]
    assert {name: module for name, module in packages.items() if distribution_of(name) not in core} == {}


def test_the_packages_that_compare_asks_for_are_those_of_its_extra():
    assert {distribution_of(name) for name in COMPARE_PACKAGES} == declared()["compare"]


def test_the_packages_that_doctor_finds_required_are_those_of_the_core():
    assert {distribution_of(name) for name in REQUIRED} == declared()["core"]


# ---- What other packages do not promise to keep ----

HOOKS = {  # by the class, or the module, whose source has them
    SFTTrainer: (
        "_finish_current_push", "_get_output_dir", "_load_best_model", "_load_from_checkpoint", "_load_rng_state",
        "_metrics", "_name", "_paper", "_prepare_dataset", "_prepare_inputs", "_push_from_checkpoint",
        "_run_epoch", "_save", "_save_checkpoint", "_save_rng_state", "_tag_names", "_tokenizer",
        "_total_train_tokens", "_tp_size", "_train_batch_size",
    ),
    PreTrainedModel: ("_can_set_attn_implementation", "_supports_sdpa"),
    PreTrainedConfig: ("_attn_implementation", "_name_or_path"),
    GenerationMixin: (
        "_beam_search", "_eos_token_tensor", "_is_stateful", "_pad_token_tensor", "_sample",
        "_supports_default_dynamic_cache",
    ),
    HfQuantizer: ("_dequantize",),
    "transformers.core_model_loading": ("_weight_conversions",),
    "peft.tuners.tuners_utils": ("_disable_adapters",),
    "peft.utils.other": ("_disable_adapters",),
    nn.Module: ("_modules", "_parameters"),
    "torch.utils": ("_python_dispatch", "_pytree"),
    "torch._meta_registrations": ("_local_scalar_dense", "_scaled_dot_product_flash_attention_for_cpu"),
    argparse.ArgumentParser: ("_actions",),
    "datasets.arrow_dataset": ("_fingerprint",),
    "datasets.packaged_modules": ("_PACKAGED_DATASETS_MODULES",),
    "sacrebleu.metrics.base": ("_compute_score_from_stats", "_extract_corpus_statistics"),
    "lm_eval.tasks": ("_yaml_loader",),
}  # fmt: skip
DOCUMENTED = {"_exit", "_replace", "_version"}  # of os, of named tuples, and the version counter of tensors


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def private_names() -> tuple[set[str], set[str]]:
    """Private names that the package defines, and those that it reads, imports or overrides and does not define."""
    used, own = set(), set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = {ast.unparse(name) for target in targets for name in getattr(target, "elts", [target])}
                own |= {name.removeprefix("self.") for name in names}
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                used |= {part for name in names for part in name.split(".")}
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
                used.add(getattr(node.args[1], "value", ""))
    others = {name for name in (used - own) | overridden() if isinstance(name, str) and is_private(name)}
    return own, others - DOCUMENTED


def overridden() -> set[str]:
    """Names of the trainer's base classes that its own classes define again."""
    ours = [kind for kind in WarmupSFTTrainer.__mro__ if kind.__module__.startswith("warmup_peft.")]
    return {name for kind in ours for name in vars(kind) if hasattr(SFTTrainer, name)}


def source_of(owner: type | str) -> str:
    """Of a class with its bases, or of a module, with the names of those beside it."""
    if isinstance(owner, str):
        module = importlib.import_module(owner)
        return " ".join([inspect.getsource(module), *(path.stem for path in Path(module.__file__).parent.iterdir())])
    return "".join(inspect.getsource(kind) for kind in owner.__mro__ if kind is not object)


@pytest.mark.parametrize("owner", HOOKS, ids=lambda owner: owner if isinstance(owner, str) else owner.__name__)
def test_private_names_of_other_packages_are_there(owner):
    """What this package reads or overrides; a release that moves one fails here, by name."""
    source = source_of(owner)
    assert [name for name in HOOKS[owner] if not re.search(rf"\b{name}\b", source)] == []


def test_the_methods_that_the_trainer_stands_in_for_are_checked_when_it_is_imported():
    methods = {name for name in overridden() if is_private(name)} - {"_tag_names", "_name", "_paper"}
    assert methods == set(STANDS_IN_FOR)


def test_every_private_name_of_another_package_is_listed():
    own, others = private_names()
    listed = {name for names in HOOKS.values() for name in names}
    assert others - listed == set()
    assert listed - others - own == set()
