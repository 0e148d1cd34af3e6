"""The video files of moving shapes, drawn on first use by several processes."""

import hashlib
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from io import BytesIO
from itertools import product
from pathlib import Path

import av
import numpy as np
from filelock import FileLock
from jaxtyping import UInt8
from tqdm import tqdm

from strm_lightning.errors import InputError
from strm_lightning.fileio import cache_folder, sweep_parts, write_atomically
from strm_lightning.moving_shapes.motions import ACTIONS
from strm_lightning.moving_shapes.scene import render_clip

Recipe = tuple[int, int, float, int]  # size, num_frames, clutter, seed

_VERSION = 2  # part of the folder name; increase it when the pixels change
_FPS = 12
_CLIPS_A_PROCESS = 16  # drawing fewer clips is faster than starting an interpreter


def moving_shapes(
    folder: Path | None = None,
    *,
    clips_per_class: int = 24,
    size: int = 128,
    num_frames: int = 24,
    clutter: float = 1.0,
    seed: int = 0,
    jobs: int | None = None,
    progress: bool = True,
) -> Path:
    """Return a folder of videos ``<class>/<serial>.mp4`` of moving shapes, drawn on first use.

    A clip depends only on (seed, class, serial), size, length and clutter. The folder gets its final name when it is
    complete. A run continues after one that was killed, and a second process waits for the first.

    Args:
        folder: parent folder of the data set; the user's cache folder if None (see `cache_folder`).
        clips_per_class: videos of each action.
        size: height and width in pixels, even.
        num_frames: frames of each video.
        clutter: amount of clutter, 0 to 1; see `render_clip`.
        seed: seed of the data set.
        jobs: number of processes; the number of cores if None.
        progress: show a progress bar.

    Raises:
        InputError: an argument is out of range.
        OSError: the folder cannot be written (``STRM_CACHE`` sets another cache folder).
        RuntimeError: a worker process failed.
    """
    if not 0 <= clutter <= 1:
        raise InputError(f"clutter of moving shapes must be 0 to 1; got {clutter}")
    if size < 32 or size % 2 or num_frames < 2 or clips_per_class < 1 or seed < 0:
        raise InputError(
            "moving shapes need an even size of at least 32 pixels, 2 frames, 1 clip a class and a seed of at least 0; "
            f"got size={size}, num_frames={num_frames}, clips_per_class={clips_per_class}, seed={seed}"
        )
    recipe = f"{_VERSION} {clips_per_class} {size} {num_frames} {clutter} {seed} {ACTIONS}"
    name = f"moving-shapes-v{_VERSION}-{hashlib.sha256(recipe.encode()).hexdigest()[:10]}"
    root = (cache_folder() if folder is None else Path(folder)) / name
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = root.with_name(f"{name}.partial")
    with FileLock(root.with_name(f"{name}.lock")):
        if root.is_dir():
            return root
        clips = [f"{action}/{serial:04d}" for serial, action in product(range(clips_per_class), ACTIONS)]
        missing = [clip for clip in clips if not (partial / f"{clip}.mp4").exists()]
        drawn = _draw_all(missing, partial, (size, num_frames, clutter, seed), jobs=_cores() if jobs is None else jobs)
        quiet = None if progress else True
        for _ in tqdm(drawn, "drawing moving shapes (first use)", len(missing), unit="clip", disable=quiet):
            pass
        for action in ACTIONS:
            sweep_parts(partial / action, older_than_s=0.0)  # of a run that was killed
        partial.rename(root)
    return root


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _draw_all(clips: list[str], folder: Path, recipe: Recipe, *, jobs: int) -> Iterator[str]:
    """Draw clips and yield the name of each when its file is written."""
    jobs = max(1, min(jobs, len(clips) // _CLIPS_A_PROCESS))
    if jobs == 1:
        yield from _draw(clips, folder, *recipe)
        return
    # New interpreters, since a fork of a process with torch may deadlock, and multiprocessing's spawn imports the main
    # module again, which takes seconds with Lightning. All write to one pipe, so they end if this process is killed.
    command = [sys.executable, "-m", "strm_lightning.moving_shapes", *map(str, (folder, *recipe))]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    reading, writing = os.pipe()
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=writing, env=environment)  # noqa: S603 (a module of this package)
        for _ in range(jobs)
    ]
    os.close(writing)
    try:
        for i, worker in enumerate(workers):
            assert worker.stdin is not None
            worker.stdin.write("\n".join(clips[i::jobs]).encode())
            worker.stdin.close()
        with os.fdopen(reading) as names:
            yield from (name.strip() for name in names)
        if failed := [worker.wait() for worker in workers if worker.wait()]:
            raise RuntimeError(
                f"{len(failed)} of {jobs} processes that draw moving shapes in {folder} failed, status {failed[0]}; "
                "their errors are above, and the next run continues with the missing clips"
            )
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _draw(clips: list[str], folder: Path, size: int, num_frames: int, clutter: float, seed: int) -> Iterator[str]:
    for clip in clips:
        action, serial = clip.split("/")
        rng = np.random.default_rng([seed, zlib.crc32(action.encode()), int(serial)])
        video = _encode(render_clip(action, rng, size=size, num_frames=num_frames, clutter=clutter))
        path = folder / f"{clip}.mp4"
        write_atomically(path, video)
        yield clip


def _encode(clip: UInt8[np.ndarray, "L H W 3"]) -> bytes:
    """Encode a clip as H.264 in mp4, with one thread, so that the bytes do not depend on the cores."""
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_FPS, options={"preset": "superfast", "crf": "25"})
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def work() -> None:
    """Draw the clips listed on standard input; print the name of each finished clip."""
    folder, size, num_frames, clutter, seed = sys.argv[1:]
    try:
        for clip in _draw(
            sys.stdin.read().split(), Path(folder), int(size), int(num_frames), float(clutter), int(seed)
        ):
            os.write(1, f"{clip}\n".encode())
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(1)
