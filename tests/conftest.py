"""Shapes in signatures are checked by beartype under pytest only; tiny real videos for all tests."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # the processes share the cores; threads on top would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import av
import numpy as np
import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401 (the hook imports `tests` alone)

_hook = install_import_hook("strm_lightning", "tests.typecheck.typechecker")

MOTIONS = {"left": (-3, 0), "right": (3, 0), "up": (0, -3), "down": (0, 3), "still": (0, 0), "rise": (3, -3)}
MOTIONS |= {"fall": (-3, 3), "sink": (3, 3), "leap": (-3, -3)}


@pytest.fixture(scope="session")
def actions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of nine actions, six clips each: a bright square that moves."""
    root, rng = tmp_path_factory.mktemp("actions"), np.random.default_rng(0)
    for name, (dx, dy) in MOTIONS.items():
        (root / name).mkdir()
        for serial in range(6):
            x, y = rng.integers(14, 30, 2)
            with av.open(str(root / name / f"{serial}.mp4"), "w") as file:
                stream = file.add_stream("libx264", rate=12)
                stream.width, stream.height, stream.pix_fmt = 56, 48, "yuv420p"
                for t in range(10):
                    image = np.full((48, 56, 3), rng.integers(0, 60), dtype=np.uint8)
                    left, top = max(0, x + dx * (t - 5)), max(0, y + dy * (t - 5))
                    image[top : top + 10, left : left + 10] = (230, 20 * serial, 90)
                    file.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
                file.mux(stream.encode())
    return root


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache; all share one of their own."""
    monkeypatch.setenv("STRM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def count_encoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many clips were encoded since the test began."""
    from strm_lightning.models import STRM

    counts: list[int] = []
    real = STRM.encode
    monkeypatch.setattr(STRM, "encode", lambda self, clips: counts.append(len(clips)) or real(self, clips))
    return lambda: sum(counts)
