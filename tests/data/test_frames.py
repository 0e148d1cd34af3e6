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


@pytest.mark.parametrize("policy", ["release", "segments", "dense"])
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


def test_dense_runs_lie_in_the_middle_of_equal_parts() -> None:
    chosen = select_frames("dense", 100, 8, None, num_segments=2, frame_stride=3)
    assert chosen == [20, 23, 26, 29, 70, 73, 76, 79]  # runs of 10 frames in 0 .. 49 and 50 .. 99, 20 to each side
    assert select_frames("dense", 20, 16, None, frame_stride=1) == list(range(2, 18))
    assert select_frames("dense", 10, 8, None, num_segments=2, frame_stride=2) == [0, 1, 2, 4, 5, 6, 7, 9]  # too short


def test_dense_runs_are_at_random_inside_their_parts_in_training() -> None:
    drawn = [select_frames("dense", 60, 8, random.Random(i), num_segments=2, frame_stride=2) for i in range(500)]
    assert all(np.diff(run).tolist() == [2, 2, 2] for frames in drawn for run in (frames[:4], frames[4:]))
    assert {frames[0] for frames in drawn} == set(range(24))  # a run of 7 frames in a part of 30
    assert {frames[4] for frames in drawn} == set(range(30, 54))


@pytest.mark.parametrize("num_segments", [1, 2, 4])
def test_dense_frames_ascend_in_any_video(num_segments: int) -> None:
    for n in COUNTS:
        for rng in (None, random.Random(n)):
            frames = select_frames("dense", n, 16, rng, num_segments=num_segments)
            assert len(frames) == 16
            assert frames == sorted(frames)
            assert set(frames) <= set(reachable_frames("dense", n, 16)) == set(range(n))


def test_dense_refuses_segments_that_do_not_divide_the_clip() -> None:
    with pytest.raises(ValueError, match="num_frames 8 is not a multiple of num_segments 3"):
        select_frames("dense", 50, 8, None, num_segments=3)
    with pytest.raises(ValueError, match="frame_stride is 0"):
        select_frames("dense", 50, 8, None, frame_stride=0)
