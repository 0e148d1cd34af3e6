"""The import order of the package: a file imports only from its own group and from groups on lower floors."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "strm_lightning"
# A group is a folder or a file; the longest name that fits counts. Groups on one floor do not import each other.
ORDER = [
    ["errors", "_version"],
    ["fileio", "messages"],
    ["episode"],
    ["models.weights", "models.positions", "moving_shapes", "data.decode", "data.sampling", "data.transforms"],
    ["models.enrichment", "models.matching", "models.backbones", "data.names"],
    ["models.head", "data.sources"],
    ["models.strm", "data.cache"],
    ["models.official", "data.detect"],
    ["models", "data.splits"],
    ["data.video_sets", "data.prepare", "data.checks", "data.episodes"],
    ["data.loaders"],
    ["data.datamodule"],
    ["evaluation"],
    ["training"],
    ["classifier"],
    ["web"],
    ["cli"],
    ["__main__"],
]
FLOORS = {group: floor for floor, groups in enumerate(ORDER) for group in groups}
SEPARATE = [("models", "data"), ("data", "models"), ("models", "lightning"), ("models", "av"), ("data", "timm")]


def group_of(module: str) -> str:
    """The group of a module such as ``data.cache.store``."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if name in FLOORS), module)


def imports(path: Path) -> set[str]:
    """Modules that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)  # a module or a name in one
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


def own(names: set[str]) -> set[str]:
    """Modules of this package, without its name, as far as they are files or folders."""
    found = {name.removeprefix("strm_lightning.") for name in names if name.startswith("strm_lightning.")}
    return {name for name in found if (PACKAGE / name.replace(".", "/")).is_dir() or _file(name).is_file()}


def _file(module: str) -> Path:
    return PACKAGE / f"{module.replace('.', '/')}.py"


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")  # imports on first use


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_from_lower_floors(path: Path) -> None:
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    group = group_of(module)
    for other in own(imports(path)):
        below = group_of(other)
        if below != group and not group.startswith(f"{below}."):  # a folder above is no import of its files
            assert FLOORS[below] < FLOORS[group], f"{module} (floor {FLOORS[group]}) imports {other} ({FLOORS[below]})"


@pytest.mark.parametrize(("folder", "banned"), SEPARATE)
def test_separate_parts_do_not_import_each_other(folder: str, banned: str) -> None:
    for path in (PACKAGE / folder).rglob("*.py"):
        roots = {name.removeprefix("strm_lightning.").partition(".")[0] for name in imports(path)}
        assert banned not in roots, f"{path.name} imports {banned}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_no_private_name_of_another(path: Path) -> None:
    names = {name.rpartition(".")[2] for name in imports(path) if name.startswith("strm_lightning.")}
    assert {name for name in names if name.startswith("_") and not name.startswith("__")} <= {"_version"}


def test_every_file_is_in_a_group() -> None:
    modules = [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in FILES]
    assert [m for m in modules if group_of(m.removesuffix(".__init__")) not in FLOORS and m != "data.__init__"] == []


def test_no_two_files_share_a_name() -> None:
    names = [path.name for path in FILES if path.stem not in {"__init__", "__main__", "base"}]
    assert sorted({name for name in names if names.count(name) > 1}) == []
