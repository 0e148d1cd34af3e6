"""Frame policies against their literal definitions."""

import random

import numpy as np
import pytest

from strm_lightning.data.sampling import reachable_frames, select_frames

COUNTS = [1, 2, 3, 5, 7, 8, 9, 10, 11, 17, 18, 19, 48, 100, 301]


def test_the_release_spaces_frames_evenly_between_two_ends() -> None:
    rng = random.Random(0)
    for n in range(10, 200):
        assert select_frames("release", n, 8, None) == [int(x) for x in np.linspace(1, n - 2, 8)]
        pad = min(5, (n - 8) // 2)
        possible = [
            [int(x) for x in np.linspace(start, end, 8)] for start in range(pad + 1) for end in range(n - 1 - pad, n)
        ]
        assert select_frames("release", n, 8, rng) in possible


def test_the_release_reaches_both_of_its_ends_in_training() -> None:
    chosen = [select_frames("release", 100, 8, random.Random(i)) for i in range(300)]
    assert {frames[0] for frames in chosen} == set(range(6))
    assert {frames[-1] for frames in chosen} == set(range(94, 100))


def test_segments_have_one_frame_each() -> None:
    assert select_frames("segments", 16, 8, None) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert select_frames("segments", 100, 4, None) == [12, 37, 62, 87]
    chosen = np.array([select_frames("segments", 80, 8, random.Random(i)) for i in range(300)])
    assert (chosen // 10 == np.arange(8)).all()
    assert all(len(np.unique(chosen[:, i])) == 10 for i in range(8))


@pytest.mark.parametrize("policy", ["release", "segments"])
@pytest.mark.parametrize("num_frames", [1, 2, 8, 16])
def test_any_length_gives_a_clip_that_ascends(policy: str, num_frames: int) -> None:
    for n in COUNTS:
        for rng in (None, random.Random(n)):
            frames = select_frames(policy, n, num_frames, rng)
            assert len(frames) == num_frames
            assert frames == sorted(frames)
            assert frames[0] >= 0
            assert frames[-1] < n
    assert select_frames(policy, 1, num_frames, None) == [0] * num_frames


@pytest.mark.parametrize("policy", ["release", "segments"])
def test_reachable_frames_are_those_that_are_reached(policy: str) -> None:
    for n in COUNTS:
        reached = set(select_frames(policy, n, 8, None))
        for i in range(1500):
            reached.update(select_frames(policy, n, 8, random.Random(f"{n}/{i}")))
        assert set(reachable_frames(policy, n, 8)) >= reached
        if n <= 100:
            assert set(reachable_frames(policy, n, 8)) == reached


def test_few_frames_of_a_long_video_are_ever_reached() -> None:
    assert len(reachable_frames("release", 3000, 8)) <= 48
    assert reachable_frames(["release", "segments"], 30, 8) == list(range(30))
    assert reachable_frames(["release"], 300, 8) == reachable_frames("release", 300, 8)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="cannot choose 8 of 0 frames"):
        select_frames("release", 0, 8, None)
