"""A file imports only from floors below its own (the architecture, held by the import statements themselves)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "strm_lightning"
FLOORS = {
    "errors": 0,
    "fileio": 1,
    "episode": 2,
    "models": 3,
    "data": 3,
    "evaluation": 4,
    "sync_batchnorm": 0,
    "module": 5,
    "classifier": 5,
    "training": 6,
}
FLOORS |= {"messages": 1, "user_code": 1, "parsing": 2, "checkpoints": 4, "convert": 6, "memory": 6}
FLOORS |= {"cli": 7, "__main__": 8}


def imports(path: Path) -> set[str]:
    """Parts of our package that a file names in an import statement (not under TYPE_CHECKING alone)."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name.split(".")[1] for name in names if name.startswith("strm_lightning.")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_from_below(path: Path) -> None:
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if part == "__init__":
        return  # imports on first use only
    for other in imports(path) - {part}:
        assert FLOORS[other] < FLOORS[part], f"{path.name} (floor {FLOORS[part]}) imports {other}"


@pytest.mark.parametrize(("folder", "banned"), [("models", {"lightning", "av"}), ("data", {"timm"})])
def test_models_know_no_files_and_data_know_no_models(folder: str, banned: set[str]) -> None:
    for path in (PACKAGE / folder).glob("*.py"):
        tree = ast.parse(path.read_text())
        roots = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        roots |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not roots & banned, f"{path.name} imports {roots & banned}"
