"""The wheel: what it contains, and metadata that need the address of the repository."""

import sys
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

from strm_lightning.cli.recipes import recipe_names

ROOT = Path(__file__).parents[1]
ADDRESS = "https://example.org/us/strm"
pytest.importorskip("hatchling", reason="the extra `dev` is not installed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    from hatchling.builders.wheel import WheelBuilder

    (path,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    return ZipFile(path)


def test_the_wheel_contains_the_package_and_the_recipes(wheel: ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    kinds = (".py", ".json", ".js", ".css", ".html")
    package = {p for p in (ROOT / "src").rglob("*") if p.suffix in kinds or p.name == "py.typed"}
    recipes = {Path(f"{name}.yaml") for name in recipe_names()}
    expected = {path.relative_to(ROOT / "src").as_posix() for path in package}
    assert names == expected | {f"strm_lightning/recipes/{path.as_posix()}" for path in recipes}
    assert len(recipes) >= 30


def test_the_wheel_has_commands_and_a_description(wheel: ZipFile) -> None:
    folder = next(name for name in wheel.namelist() if name.endswith("METADATA")).rpartition("/")[0]
    assert "strm = strm_lightning.cli.main:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    metadata = message_from_bytes(wheel.read(f"{folder}/METADATA"))
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "# strm-lightning" in str(metadata.get_payload())
    assert {"weights", "plots", "web", "fast", "completion"} <= set(metadata.get_all("Provides-Extra") or [])


def test_the_address_makes_links_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from hatch_build import Metadata

    metadata: dict[str, object] = {}
    Metadata(str(ROOT), {"repository": f"{ADDRESS}/"}).update(metadata)
    text = str(metadata["readme"]["text"])  # type: ignore[index]
    assert f"({ADDRESS}/raw/main/docs/images/quickstart.png)" in text
    assert f"[CONTRIBUTING.md]({ADDRESS}/blob/main/CONTRIBUTING.md)" in text
    assert "](docs/" not in text
    assert "](https://arxiv.org/abs/2112.05132)" in text
    assert metadata["urls"]["Issues"] == f"{ADDRESS}/issues"  # type: ignore[index]
    unknown: dict[str, object] = {}
    Metadata(str(ROOT), {"repository": ""}).update(unknown)
    assert "urls" not in unknown
    assert unknown["readme"]["text"] == (ROOT / "README.md").read_text()  # type: ignore[index]
