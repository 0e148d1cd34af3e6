"""Recipes are found by name, from any folder, and copied."""

import re
from pathlib import Path

import pytest

from strm_lightning.cli import recipes as recipes_module
from strm_lightning.cli.recipes import find_recipe, find_recipes, recipe_folder, recipe_names
from strm_lightning.errors import MissingFileError
from tests.test_cli import TINY, said

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
RECIPES = [path for path in EXPERIMENTS.rglob("*.yaml") if path != EXPERIMENTS / "methods" / "methods.yaml"]


def test_every_configuration_is_a_recipe() -> None:
    assert recipe_folder() == EXPERIMENTS
    assert {f"{name}.yaml" for name in recipe_names()} == {path.relative_to(EXPERIMENTS).as_posix() for path in RECIPES}


pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*")


@pytest.mark.parametrize("name", ["hardware/gpu24", "hardware/gpu24.yaml", "experiments/hardware/gpu24.yaml"])
def test_a_recipe_is_found_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == str(EXPERIMENTS / "hardware" / "gpu24.yaml")


def test_a_file_comes_before_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("{}")
    assert find_recipe("quickstart") == "quickstart"
    assert find_recipe("model: {lr: 1}") == "model: {lr: 1}"
    found = find_recipes(["fit", "--config", "kinetics", "-c=trx.yaml", "--data.root", "trx"])
    assert found == [
        "fit",
        "--config",
        str(EXPERIMENTS / "kinetics.yaml"),
        f"-c={EXPERIMENTS / 'trx.yaml'}",
        "--data.root",
        "trx",
    ]


def test_the_wheel_has_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "strm_lightning"
    (package / "recipes").mkdir(parents=True)
    monkeypatch.setattr(recipes_module.strm_lightning, "__file__", str(package / "__init__.py"))
    with pytest.raises(MissingFileError, match="install the package again"):
        recipe_folder()
    (package / "recipes" / "quickstart.yaml").write_text("{}")
    assert recipe_folder() == package / "recipes"
    assert recipe_names() == ["quickstart"]


def test_an_unknown_recipe_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _, err, status = said(monkeypatch, capsys, "fit", "--config", "kinetic")
    assert status == 2
    assert err == (
        "error: --config kinetic: no such file, and no recipe of that name; did you mean 'kinetics'? "
        "all recipes: strm recipes\n"
    )


def test_a_run_from_another_folder_uses_a_recipe(
    actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's use of it
    monkeypatch.chdir(tmp_path)
    options = [*TINY, f"--data.root={actions}", "--model.pretrained=false", "--model.weights=null"]
    tiny = ["--data.train_way=2", "--trainer.fast_dev_run=1", "--test_after_fit=false", "--model.freeze_backbone=false"]
    out, err, status = said(monkeypatch, capsys, "fit", "--config", "experiments/quickstart.yaml", *options, *tiny)
    assert status == 0, err
    out, _, status = said(
        monkeypatch, capsys, "fit", "--config=quickstart", *options, *tiny, "--data.train_way=3", "--print_config"
    )
    assert status == 0
    assert "schedule: one_cycle" in out


def test_recipes_are_listed_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _, status = said(monkeypatch, capsys, "recipes")
    assert status == 0
    for name in recipe_names():
        found = re.search(rf"^  {name} +(\w.{{10,}})", out, re.MULTILINE)
        assert found, name
        assert found[1].count("(") == found[1].count(")"), found[1]
    assert "STRM on Kinetics-100 as in the paper (5-way 5-shot; published: 86.7 %)\n" in out
    out, _, status = said(monkeypatch, capsys, "recipes", "--copy-to", str(tmp_path / "mine"))
    assert status == 0
    for path in RECIPES:
        assert (tmp_path / "mine" / path.relative_to(EXPERIMENTS)).read_bytes() == path.read_bytes()
    _, err, status = said(monkeypatch, capsys, "recipes", "--copy_to", str(tmp_path / "mine"))
    assert status == 2
    assert "exists already" in err
