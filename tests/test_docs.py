"""The documentation builds without a warning, is complete, and quotes commands, files and messages that exist."""

import ast
import doctest
import importlib
import inspect
import posixpath
import re
import subprocess
import sys
from pathlib import Path

import pytest

from strm_lightning.cli.fit import _summary
from strm_lightning.cli.main import COMMANDS, TRAINING
from strm_lightning.evaluation.pictures import METRICS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "strm_lightning"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "__main__.py")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning fails it, and so does a reference to a name that does not exist."""
    pytest.importorskip("furo", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(folder / "trees")]
    done = subprocess.run(
        [*command, str(DOCS), str(folder / "html")], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "PYTHONWARNINGS": "ignore", "HOME": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_public_name_is_documented(site: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        loaded = InventoryFile.load(file, "", posixpath.join)
    inventory = getattr(loaded, "data", loaded)  # a dictionary before Sphinx 8.2, which needs Python 3.11
    documented = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    public = set()
    for path in FILES:
        name = module_name(path)
        if path.stem.startswith("_") and path.name != "__init__.py":
            continue
        public.add(name)
        for key, value in vars(importlib.import_module(name)).items():
            own = getattr(value, "__module__", None) == name and key == getattr(value, "__name__", None)
            if own and not key.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
                public.add(f"{name}.{key}")
    public.remove("strm_lightning")  # api/index.md describes it
    assert len(public) > 300
    assert sorted(public - documented) == []


def test_signatures_have_types_and_shapes(site: Path) -> None:
    page = re.sub(r"<[^>]+>", "", (site / "api" / "models.html").read_text())
    assert re.search(r"encode\(clips: UInt8\[Tensor, .{1,8}\*B L 3 H W", page)


def test_every_command_has_its_options(site: Path) -> None:
    page = (site / "commands.html").read_text()
    for name in (*TRAINING, *COMMANDS):
        assert f'id="strm-{name}"' in page, name
    for option in ("--trainer.max_epochs", "--model.matching_options", "--save_support", "--other_lists"):
        assert option in page, option


def test_notebooks_are_pages_with_their_pictures(site: Path) -> None:
    names = {path.stem for path in (ROOT / "experiments" / "notebooks").glob("*.ipynb")}
    assert names == {path.stem for path in (site / "notebooks").glob("*.html")}
    for name in names:
        assert "<img" in (site / "notebooks" / f"{name}.html").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    assert not [n for n in re.findall(r"experiments/[\w/]+\.(?:yaml|py|ipynb)", text) if not (ROOT / n).is_file()]
    assert not [n for n in re.findall(r"^strm (\w+)", text, re.MULTILINE) if n not in {*TRAINING, *COMMANDS}]


def templates() -> list[re.Pattern[str]]:
    """Every text of the source with at least 12 letters, as a pattern: any text fits where a value is inserted."""
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [re.escape(p.value) if isinstance(p, ast.Constant) else "\0" for p in node.values]
                found.add(re.sub("\0+", "(.*)", "".join(parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(re.escape(node.value))
    return [re.compile(text, re.DOTALL) for text in found if len(re.findall("[a-z]", text.replace("(.*)", ""))) >= 12]


def test_the_readme_shows_the_summary_that_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("runs/quickstart/version_0")
    monkeypatch.chdir(tmp_path)
    folder.mkdir(parents=True)
    (folder / METRICS).touch()
    data = {"root": "moving-shapes", "split": "shares", "split_seed": 0, "classes": 18}
    checkpoint = {"path": str(tmp_path / folder / "checkpoints" / "best.ckpt"), "chosen_on": "val", "trained_on": ""}
    widths = {"episodes": (0.01, 2000), "clips": (0.039, 288), "classes": (0.093, 18)}
    report = {
        "accuracy": 0.624, "ci95": 0.01, "episodes": 2000, "way": 5, "shot": 1, "sweep": [], "controls": {},
        "intervals": {name: {"ci95": ci95, "number": number, "unknown": ""} for name, (ci95, number) in widths.items()},
        "card": {"data": data, "model": {"transductive": False}, "checkpoint": checkpoint | {"training": data}},
    }  # fmt: skip
    pictures = [tmp_path / folder / f"{name}.png" for name in ("confusion", "per-class", "learning-curve")]
    assert f"```text{_summary(report, tmp_path / folder, pictures)}\n```" in (ROOT / "README.md").read_text()


def test_quoted_messages_exist_in_the_source() -> None:
    quoted = re.findall(r"^> (.+)$", (DOCS / "errors.md").read_text(), re.MULTILINE)
    patterns = templates()
    assert len(quoted) > 30
    assert [message for message in quoted if not any(pattern.fullmatch(message) for pattern in patterns)] == []
    # The comparison finds a wrong word.
    assert not any(pattern.fullmatch("no data at data/kinetics: no such directory") for pattern in patterns)


@pytest.mark.parametrize(
    "path", [path for path in FILES if ">>> " in path.read_text()], ids=lambda p: str(p.relative_to(SOURCE))
)
def test_examples_in_docstrings(path: Path) -> None:
    result = doctest.testmod(importlib.import_module(module_name(path)), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0
