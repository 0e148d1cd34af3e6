"""The documentation builds without a warning, and its commands name what exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_docs_build_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("furo", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(tmp_path / "trees")]
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(tmp_path / "html")], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html" / "api.html").read_text()
    for name in ("strm.STRM", "head.STRMHead", "official.load_official", "datamodule.EpisodeDataModule"):
        assert name in page


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    missing = [n for n in re.findall(r"experiments/[\w/]+\.yaml", text) if not (ROOT / n).is_file()]
    assert not missing
    toctree = (ROOT / "docs" / "index.md").read_text()
    assert page.stem == "index" or re.search(rf"^{page.stem}$", toctree, re.MULTILINE)
