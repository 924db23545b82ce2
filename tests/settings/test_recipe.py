"""A recipe: what its file and its overrides say."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from warmup_peft.settings.recipe import Recipe


@dataclass
class Data:
    path: str = "rows"
    share: float = 0.0


@dataclass
class Training:
    steps: int = 10
    rate: float = 0.1


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text("path: mine\nsteps: 20\n")
    return Recipe.read(["--config", str(path), "--steps", "30"], Data, Training)


def test_it_knows_what_comes_from_where(recipe):
    assert (recipe.file, recipe.overrides) == ({"path": "mine", "steps": 20}, {"steps": 30})
    assert recipe.values == {"path": "mine", "steps": 30}
    assert recipe.names == ["path", "share", "steps", "rate"]
    assert recipe.settings() == (Data("mine"), Training(30))


def test_overrides_win_and_leave_the_recipe_as_it_was(recipe):
    changed = recipe.with_overrides({"steps": "40", "rate": 0.5}).with_overrides({"rate": "1e-3"})
    assert changed.settings() == (Data("mine"), Training(40, 0.001))
    assert changed.values == {"path": "mine", "steps": 40, "rate": 0.001}
    assert recipe.values == {"path": "mine", "steps": 30}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"step": 3}, r"unknown key 'step'\. Did you mean 'steps'\?"),
        ({"steps": 2.5}, r"steps: 2.5, which does not fit\. It takes int"),
        ({"steps": "many"}, "Argument --steps: invalid int value: 'many'"),
    ],
)
def test_overrides_that_are_refused(recipe, overrides, said):
    with pytest.raises(ValueError, match=said):
        recipe.with_overrides(overrides)


def test_options_that_are_left_out_have_their_defaults(recipe):
    assert recipe.without("steps").settings() == (Data("mine"), Training())
    assert recipe.without("steps").values == {"path": "mine"}


def test_part_of_a_recipe(recipe):
    part = recipe.restricted_to(Training)
    assert (part.file, part.overrides, part.settings()) == ({"steps": 20}, {"steps": 30}, (Training(30),))
