import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from strm_lightning import fileio
from strm_lightning.moving_shapes import ACTIONS, SPLIT, dataset, moving_shapes, render_clip
from strm_lightning.moving_shapes.motions import MOTIONS
from strm_lightning.moving_shapes.outlines import FIGURES

SMALL = {"size": 48, "num_frames": 8, "progress": False}
REVERSED = [  # (an action, what its frames show in reverse order)
    ("slide_left", "slide_right"),
    ("slide_up_left", "slide_down_right"),
    ("check_mark", "check_mark_reversed"),
    ("circle_clockwise", "circle_counterclockwise"),
    ("square_clockwise", "square_counterclockwise"),
    ("spiral_in", "spiral_out"),
    ("come_near", "go_away"),
    ("meet", "part"),
]
SOME_REVERSED = [REVERSED[0], REVERSED[3]]


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One clip of each action, drawn by two processes."""
    return moving_shapes(tmp_path_factory.mktemp("whole"), clips_per_class=1, jobs=2, **SMALL)


def draw(folder: Path, actions: list[str], count: int, num_frames: int = 6) -> dict[str, np.ndarray]:
    """Clips of some actions, by way of files: [count, L, H, W, 3] in 0 .. 1."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "ACTIONS", tuple(actions))
        root = moving_shapes(
            folder, clips_per_class=count, size=48, num_frames=num_frames, seed=7, jobs=2, progress=False
        )
    return {a: np.stack([decoded(p) for p in sorted((root / a).iterdir())]).astype(np.float32) / 255 for a in actions}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return draw(tmp_path_factory.mktemp("pairs"), [action for pair in SOME_REVERSED for action in pair], 48)


# --- actions ----------------------------------------------------------------------------------------------------------


def test_the_split_cuts_the_actions_into_disjoint_parts() -> None:
    assert sorted(name for part in SPLIT.values() for name in part) == sorted(ACTIONS)
    assert len(ACTIONS) == len(set(ACTIONS)) >= 48
    assert len(SPLIT["test"]) >= 10
    assert len(SPLIT["val"]) >= 5


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_moves_what_it_shows(action: str, whole: Path) -> None:
    clip = decoded(whole / action / "0000.mp4").astype(int)
    assert clip.shape == (8, 48, 48, 3)
    assert clip[0].std() > 3
    change = np.abs(clip - clip[:1]).max(axis=-1)
    assert (change > 25).sum(axis=(1, 2)).max() >= 8


@pytest.mark.parametrize("name", [name for name in FIGURES if name.endswith("_clockwise")])
def test_clockwise_and_counterclockwise_figures_enclose_areas_of_opposite_sign(name: str) -> None:
    def area(action: str) -> float:
        (track,) = MOTIONS[action](np.linspace(0, 1, 65), np.random.default_rng(0), 0.3)
        (x, y), (nx, ny) = track.xy[:-1].T, track.xy[1:].T
        return float((x * ny - nx * y).sum() / 2)  # y down: clockwise is positive

    assert area(name) > 1
    assert area(name.replace("_clockwise", "_counterclockwise")) < -1


@pytest.mark.parametrize(("action", "other"), REVERSED)
def test_an_action_in_reverse_is_the_other(action: str, other: str) -> None:
    t = np.linspace(0, 1, 33)
    forth, back = (MOTIONS[a](s, np.random.default_rng(0), 0.3) for a, s in ((action, t), (other, 1 - t)))
    for one, two in zip(forth, back, strict=True):
        np.testing.assert_allclose(one.xy, two.xy, atol=1e-9)
        np.testing.assert_allclose(one.scale, two.scale, atol=1e-9)


def test_pixels_that_move_go_where_the_name_says(pairs: dict[str, np.ndarray]) -> None:
    for action, sign in {"slide_left": -1, "slide_right": 1}.items():
        start, *_, end = np.median([trajectory(clip)[:, 0] for clip in pairs[action]], axis=0)
        assert sign * (end - start) > 0.15


def test_slides_and_rolls_move_where_the_name_says() -> None:
    ways = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    for action in ACTIONS:
        kind, *names = action.split("_")
        if kind in ("slide", "roll"):
            (track,) = MOTIONS[action](np.linspace(0, 1, 5), np.random.default_rng(0), 0.3)
            np.testing.assert_array_equal(np.sign(track.xy[-1] - track.xy[0]), np.sum([ways[n] for n in names], axis=0))


def test_one_generator_gives_one_clip_and_another_another() -> None:
    first, again = (render_clip("star", np.random.default_rng([0, 1]), size=48, num_frames=4) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != render_clip("star", np.random.default_rng([0, 2]), size=48, num_frames=4)).mean() > 0.5


def test_an_unknown_action_is_named() -> None:
    with pytest.raises(ValueError, match=r"'moonwalk'.*slide_left"):
        render_clip("moonwalk", np.random.default_rng(0))


# --- no single frame gives the class away -----------------------------------------------------------------------------


def trajectory(clip: np.ndarray) -> np.ndarray:
    """Where and how much the frames differ from the clip's median picture: [L, (x, y, spread, mass)]."""
    change = np.abs(clip - np.median(clip, axis=0)).sum(axis=-1)
    change = np.where(change > np.quantile(change, 0.8), change, 0) + 1e-3
    line = np.linspace(-1, 1, clip.shape[1])
    mass = change.sum(axis=(1, 2))
    x, y = (change.sum(axis=1) @ line) / mass, (change.sum(axis=2) @ line) / mass
    off = (line[None, None] - x[:, None, None]) ** 2 + (line[None, :, None] - y[:, None, None]) ** 2
    return np.stack([x, y, np.sqrt((off * change).sum(axis=(1, 2)) / mass), np.log(mass)], axis=1)


def in_order(clip: np.ndarray) -> np.ndarray:
    """Steps of the trajectory and the areas it sweeps, in order."""
    path = trajectory(clip)
    path = path.reshape(6, -1, 4).mean(axis=1)
    step = np.diff(path, axis=0)
    turn = step[:-1, 0] * step[1:, 1] - step[:-1, 1] * step[1:, 0]
    swept = path[:-1, 0] * path[1:, 1] - path[:-1, 1] * path[1:, 0]
    return np.concatenate([step.ravel(), turn, [turn.sum(), swept.sum()]])


def out_of_order(clip: np.ndarray) -> np.ndarray:
    """What a bag of frames holds: mean and spread of the pixels, and of the same trajectory."""
    path = trajectory(clip)
    cells = small(clip)
    return np.concatenate([cells.mean(axis=0), cells.std(axis=0), path.mean(axis=0), path.std(axis=0)])


def small(clip: np.ndarray) -> np.ndarray:
    """Each frame as 8 x 8 cells: [L, 192]."""
    length, height, width, _ = clip.shape
    return clip.reshape(length, 8, height // 8, 8, width // 8, 3).mean(axis=(2, 4)).reshape(length, -1)


def accuracy(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    return float((cross_val_predict(model, x, y, groups=groups, cv=GroupKFold(4)) == y).mean())


def pair_accuracies(action: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Accuracy of a linear classifier of two actions on new clips, from the given features."""
    both, count = np.concatenate([action, other]), len(action)
    y, clip_ids = np.repeat([0, 1], count), np.arange(2 * count)
    length = len(both[0])
    frames = np.concatenate([small(clip) for clip in both])
    return {
        "single frames": accuracy(frames, np.repeat(y, length), np.repeat(clip_ids, length)),
        "shuffled frames": accuracy(np.stack([out_of_order(clip) for clip in both]), y, clip_ids),
        "frames in order": accuracy(np.stack([in_order(clip) for clip in both]), y, clip_ids),
    }


@pytest.mark.parametrize(("action", "other"), SOME_REVERSED)
def test_only_the_order_of_frames_tells_an_action_from_its_reverse(
    action: str, other: str, pairs: dict[str, np.ndarray]
) -> None:
    seen = pair_accuracies(pairs[action], pairs[other])
    print(action, other, seen)
    assert seen["single frames"] < 0.62
    assert seen["shuffled frames"] < 0.64
    assert seen["frames in order"] > 0.75


@pytest.mark.slow
@pytest.mark.parametrize(("action", "other"), REVERSED)
def test_only_the_order_of_frames_tells_them_apart_over_many_clips(action: str, other: str, tmp_path: Path) -> None:
    clips = draw(tmp_path, [action, other], 400, num_frames=12)
    seen = pair_accuracies(clips[action], clips[other])
    print(action, other, seen)
    assert seen["single frames"] < 0.55
    assert seen["shuffled frames"] < 0.56
    assert seen["frames in order"] > 0.7


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_lie_by_class_and_decode_to_every_frame(whole: Path) -> None:
    assert sorted(files(whole)) == sorted(f"{action}/0000.mp4" for action in ACTIONS)
    for action in ACTIONS:
        assert decoded(whole / action / "0000.mp4").shape == (8, 48, 48, 3)
    assert [path.name for path in whole.parent.iterdir() if path.suffix != ".lock"] == [whole.name]


def test_files_show_the_clip_that_was_drawn(tmp_path: Path) -> None:
    clip = render_clip("circle_clockwise", np.random.default_rng(3), size=96, num_frames=6)
    (tmp_path / "clip.mp4").write_bytes(dataset._encode(clip))
    assert np.abs(decoded(tmp_path / "clip.mp4").astype(int) - clip).mean() < 8


def test_files_are_the_same_from_one_process_and_several(whole: Path, tmp_path: Path) -> None:
    names = [f"{action}/0000" for action in ACTIONS[::15]]
    assert list(dataset._draw_all(names, tmp_path, (48, 8, 1.0, 0), jobs=1)) == names
    for name in names:
        assert (tmp_path / f"{name}.mp4").read_bytes() == (whole / f"{name}.mp4").read_bytes()


def test_a_second_call_draws_nothing(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_draw_all", lambda *_, **__: pytest.fail("drawn again"))
    assert moving_shapes(whole.parent, clips_per_class=1, **SMALL) == whole


def test_more_clips_a_class_begin_with_the_same_ones(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "ACTIONS", ACTIONS[:3])
    monkeypatch.setenv("STRM_CACHE", str(tmp_path))
    more = files(moving_shapes(clips_per_class=2, **SMALL))
    other = files(moving_shapes(clips_per_class=2, seed=1, **SMALL))
    assert len(list(tmp_path.glob("moving-shapes-v*[!k]"))) == 2
    for action in ACTIONS[:3]:
        assert more[f"{action}/0000.mp4"] == files(whole)[f"{action}/0000.mp4"]
        assert more[f"{action}/0001.mp4"] != more[f"{action}/0000.mp4"] != other[f"{action}/0000.mp4"]


FEW = ACTIONS[:32]  # as many as make two processes draw
CALL = """
import sys
from pathlib import Path
from strm_lightning.moving_shapes import dataset
dataset.ACTIONS = dataset.ACTIONS[:32]
print(dataset.moving_shapes(Path(sys.argv[1]), clips_per_class=1, size=48, num_frames=8, jobs=2, progress=False))
"""


def start(folder: Path) -> subprocess.Popen[str]:
    source = str(Path(dataset.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": source}
    return subprocess.Popen(
        [sys.executable, "-c", CALL, str(folder)], stdout=subprocess.PIPE, env=environment, text=True
    )


def few(whole: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(whole).items() if name.split("/")[0] in FEW}


def test_a_run_killed_in_the_middle_is_completed_by_the_next(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "ACTIONS", FEW)
    process = start(tmp_path)
    while len(list(tmp_path.rglob("*.mp4"))) < 5:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (partial,) = tmp_path.glob("*.partial")
    kept = next(partial.rglob("*.mp4"))
    written = kept.stat().st_mtime_ns
    (kept.parent / ".0000.mp4.0123456789ab.part").write_bytes(b"half a vid")
    root = moving_shapes(tmp_path, clips_per_class=1, **SMALL)
    assert files(root) == few(whole)
    assert (root / kept.relative_to(partial)).stat().st_mtime_ns == written
    assert not partial.exists()


def test_two_processes_at_once_make_one_folder(whole: Path, tmp_path: Path) -> None:
    roots = [process.communicate()[0].strip() for process in [start(tmp_path), start(tmp_path)]]
    assert roots[0] == roots[1]
    assert files(Path(roots[0])) == few(whole)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_a_worker_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "ACTIONS", tuple(f"no_such_action_{i}" for i in range(32)))  # unknown to the workers
    with pytest.raises(RuntimeError, match="2 of 2 processes"):
        moving_shapes(tmp_path, clips_per_class=1, jobs=2, **SMALL)


@pytest.mark.parametrize("wrong", [{"size": 33}, {"size": 16}, {"num_frames": 1}, {"clips_per_class": 0}, {"seed": -1}])
def test_numbers_that_make_no_data_set_are_refused(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"got .*{next(iter(wrong))}={next(iter(wrong.values()))}"):
        moving_shapes(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())


def test_the_cache_folder_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRM_CACHE", "/a/b")
    assert fileio.cache_folder() == Path("/a/b")
    monkeypatch.delenv("STRM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert fileio.cache_folder() == Path("/c/strm_lightning")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fileio.cache_folder() == Path.home() / ".cache" / "strm_lightning"
