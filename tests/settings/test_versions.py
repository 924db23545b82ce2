"""What is said where a release of another package has moved what this one stands in for."""

from __future__ import annotations

import pytest

import warmup_peft
from warmup_peft.settings.versions import check_overridden, with_fix


class Theirs:
    def _save(self, folder, state): ...

    def _load(self, folder, model, strict): ...


class Ours(Theirs):
    def _save(self, *positional): ...

    def _load(self, folder, model=None): ...


def test_methods_that_are_gone_or_take_more_are_named():
    check_overridden(Ours, Theirs, ("_save",), "trl")
    with pytest.raises(ImportError, match=r"^This warmup_peft does not work with trl 1\.\S+: Theirs\._load takes o"):
        check_overridden(Ours, Theirs, ("_save", "_load"), "trl")
    with pytest.raises(ImportError, match=r"transformers 5\.\S+: Theirs\._run is gone\. Run: pip install 'trl.*1\.16"):
        check_overridden(Ours, Theirs, ("_run",), "trl", "transformers")


def test_a_name_that_cannot_be_imported_comes_with_its_version_and_the_fix(monkeypatch):
    def moved(name):
        from trl import NoSuchName  # noqa: F401

    monkeypatch.setattr("importlib.import_module", moved)
    with pytest.raises(ImportError, match=r"with trl 1\.\S+: cannot import name 'NoSuchName'.* Run: pip install"):
        _ = warmup_peft.WarmupSFTTrainer


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'trl'", name="trl"), ImportError("other")])
def test_other_errors_stay_as_they_are(error):
    assert with_fix(error) is error
