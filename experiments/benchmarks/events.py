"""How well events are found in long videos: clips joined with clips of no class between them, so that times are known.

    python experiments/benchmarks/events.py FOLDER --cache CACHE [--matching kernel_ridge] [--shots 3] [--half report]

FOLDER has files ``NAME_CLASS_NUMBER.mp4`` (EgoGestAR's test videos); those of the class ``unclassified`` are put
between the events. Clips are divided into two halves: the constants of `classifier.events` were chosen on ``choose``,
and figures are reported on ``report``. No clip is in both halves. A draw divides the clips of a half into examples and
six videos of seven events with gaps between them; no example is in a video. Videos are joined from the frames at
8 frames a second. CACHE keeps the pooled maps of frames and the logits of windows; it must not be in a repository.

``stream`` begins each video without knowledge of its background; ``one stream`` is all videos of a draw in a row.

Printed is the F1 of events over all draws, and its lowest and highest value of one draw: an event is right if its label
is, and its temporal IoU with the true one is at least 0.5.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from strm_lightning.classifier import FewShotClassifier
from strm_lightning.classifier.calibration import fit_threshold
from strm_lightning.classifier.clips import read_clip, regular_frames
from strm_lightning.classifier.events import EventStream, WindowPlan, Windows, plan_windows, segment_scores
from strm_lightning.classifier.support import EncodedClip, SupportSet
from strm_lightning.data.decode.video import video_seconds
from strm_lightning.episode import PooledMaps

RATE, VIDEOS, EVENTS, SHOTS = 8.0, 6, 7, 3
Truth = tuple[float, float, str]


def divide(folder: Path, half: str, draw: int) -> tuple[dict[str, list[Path]], list[list[tuple[str | None, Path]]]]:
    """Return the examples of each class of a half, and the clips of each video with their class, None in gaps."""
    clips: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.mp4")):
        clips.setdefault(file.stem.split("_")[1], []).append(file)
    rng = random.Random(0)  # the same halves for all draws
    gaps = clips.pop("unclassified")
    for files in [gaps, *clips.values()]:
        rng.shuffle(files)
    i = ("choose", "report").index(half)
    rng, gaps = random.Random(draw), gaps[i::2]
    clips = {label: rng.sample(files[i::2], len(files[i::2])) for label, files in clips.items()}
    examples = {label: files[:SHOTS] for label, files in clips.items()}
    left = {label: files[SHOTS:] for label, files in clips.items()}
    videos = []
    for _ in range(VIDEOS):
        labels = sorted(left, key=lambda label: (-len(left[label]), rng.random()))[:EVENTS]
        rng.shuffle(labels)
        between = rng.sample(gaps, EVENTS + 1)
        video: list[tuple[str | None, Path]] = [(None, between[0])]
        for label, gap in zip(labels, between[1:], strict=True):
            video += [(label, left[label].pop()), (None, gap)]
        videos.append(video)
    return examples, videos


def cached(path: Path, make: Callable[[], object]) -> object:
    if not path.is_file():
        torch.save(make(), path)
    return torch.load(path, weights_only=False)


def maps_of(
    classifier: FewShotClassifier, file: Path, cache: Path, *, whole: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled maps of the frames of a clip at 8 frames a second, or of the 8 frames that encode it as a whole."""

    @torch.inference_mode()
    def make() -> tuple[torch.Tensor, torch.Tensor]:
        if whole:
            frames = read_clip(file, classifier.preprocessing)
        else:
            frames = torch.stack([frame for frame, _ in regular_frames(file, classifier.preprocessing, rate=RATE)])
        parts = [windows_of.store.encode_frames(part) for part in frames.split(8)]
        return torch.cat([p[0] for p in parts]).half(), torch.cat([p[1] for p in parts]).half()

    windows_of = Windows(
        classifier.support, classifier.preprocessing, WindowPlan(RATE, 1, (1,), np.zeros((1, 1)), np.ones(1))
    )
    return cached(cache / f"{file.stem}{'.whole' if whole else ''}.maps", make)


def examples_of(classifier: FewShotClassifier, files: dict[str, list[Path]], cache: Path, shots: int) -> SupportSet:
    head = classifier.model.head
    support = SupportSet(classifier.model, classifier.qc_weight)
    for label, clips in files.items():
        for file in clips[:shots]:
            grid, mean = (tensor.float() for tensor in maps_of(classifier, file, cache, whole=True))
            with torch.inference_mode():
                encoded = head.encode(head.enrich_pooled(PooledMaps(grid=grid, mean=mean)))
            thumbnail = torch.zeros(8, 3, 1, 1, dtype=torch.uint8)
            support.add(label, [EncodedClip(file.name, file.name, thumbnail, encoded, duration=video_seconds(file))])
    return support


def scores_of(classifier, support, plan, video, cache) -> tuple[list[np.ndarray | None], list[Truth]]:
    windows, scores, truth = Windows(support, classifier.preprocessing, plan), [], []
    for label, file in video:
        encoded = [tensor.float() for tensor in maps_of(classifier, file, cache, whole=False)]
        start = windows.store.end
        for i in range(0, len(encoded[0]), 8):
            part = [tensor[i : i + 8] for tensor in encoded]
            scores += windows.add(part, range(windows.store.end, windows.store.end + len(part[0])))
        if label is not None:
            truth.append((start / RATE, windows.store.end / RATE, label))
    return scores, truth


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / (max(a[1], b[1]) - min(a[0], b[0]))


def count_right(found: list[Truth], truth: list[Truth]) -> int:
    left, right = list(truth), 0
    for event in found:
        match = max((t for t in left if t[2] == event[2]), key=lambda t: overlap(t, event), default=None)
        if match is not None and overlap(match, event) >= 0.5:
            left.remove(match)
            right += 1
    return right


def fixed_windows(scores, plan, labels, threshold, seconds=3.0) -> list[Truth]:
    """``--window 3 --threshold fit``: consecutive windows with the same label are one event."""
    row = min(range(len(plan.lengths)), key=lambda i: abs(plan.lengths[i] / RATE - seconds))
    length, step, last, found = plan.lengths[row], plan.lengths[row] // 2, 0, []
    for end in range(length, len(scores) + 1):
        if scores[end - 1] is None or end - last < step:
            continue
        last = end
        values = scores[end - 1][row]
        label = labels[int(values.argmax())] if values.max() >= threshold else None
        if label and found and found[-1][2] == label and found[-1][1] >= (end - length) / RATE:
            found[-1] = (found[-1][0], end / RATE, label)
        elif label:
            found.append(((end - length) / RATE, end / RATE, label))
    return found


def suppressed(scores, plan, labels, threshold) -> list[Truth]:
    """Windows of all lengths above the threshold; the best one excludes all that overlap with it."""
    every = [
        (float(values.max()), (end - n) / RATE, end / RATE, labels[int(values.argmax())])
        for end, step in enumerate(scores, 1)
        if step is not None
        for n, values in zip(plan.lengths, step, strict=True)
        if np.isfinite(values[0]) and values.max() >= threshold
    ]
    kept: list[Truth] = []
    for _, *event in sorted(every, reverse=True):
        if all(overlap(event, other) == 0 for other in kept):
            kept.append((event[0], event[1], event[2]))
    return kept


def segmented(scores, support, plan) -> list[Truth]:
    return [(e.start, e.end, e.prediction.label) for e in segment_scores(scores, support, plan)]


def streamed(scores, support, config, plan, delay) -> list[Truth]:
    stream = EventStream(support, config, plan, delay)
    events = [event for step in scores for event in stream.add(step)] + stream.finish()
    return [(e.start, e.end, e.prediction.label) for e in events]


def joined(all_scores, truths) -> tuple[list[np.ndarray | None], list[Truth]]:
    """All videos of a draw as one."""
    starts = np.cumsum([0, *map(len, all_scores)]) / RATE
    shifted = [
        (start + offset, end + offset, label)
        for events, offset in zip(truths, starts[:-1].tolist(), strict=True)
        for start, end, label in events
    ]
    return [step for scores in all_scores for step in scores], shifted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--matching", default="auto")
    parser.add_argument("--shots", type=int, default=SHOTS, help=f"examples a class, at most {SHOTS}")
    parser.add_argument("--half", choices=("choose", "report"), default="report")
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    classifier = FewShotClassifier.from_backbone(matching=options.matching)
    counts: dict[str, list[tuple[int, int, int]]] = {}
    start, seconds = time.perf_counter(), 0.0
    for draw in range(options.draws):
        files, videos = divide(options.folder, options.half, draw)
        support = examples_of(classifier, files, options.cache, options.shots)
        plan, labels, config = plan_windows(support, RATE), support.labels, classifier.preprocessing
        known = support.leave_one_out()[0]
        threshold = fit_threshold(known, support.leave_classes_out()) if options.shots > 1 else -np.inf
        all_scores, truths = [], []
        for number, video in enumerate(videos):
            name = f"{options.matching}.{options.shots}.{options.half}.{draw}.{number}.{len(plan.lengths)}.scores"
            made = partial(scores_of, classifier, support, plan, video, options.cache)
            scores, truth = cached(options.cache / name, made)
            all_scores.append(scores)
            truths.append(truth)
            seconds += len(scores) / RATE
        methods: dict[str, Callable[[Any], list[Truth]]] = {
            "--window 3 --threshold fit": partial(fixed_windows, plan=plan, labels=labels, threshold=threshold),
            "several lengths, suppression": partial(suppressed, plan=plan, labels=labels, threshold=threshold),
            "--events": partial(segmented, support=support, plan=plan),
        }
        streams = {}
        for delay in (1, 3, 5, 8):
            streams[f"stream, delay {delay} s"] = partial(
                streamed, support=support, config=config, plan=plan, delay=delay
            )
        one, true = joined(all_scores, truths)
        for find_all, of_videos, of_truths in (
            (methods | streams, all_scores, truths),
            ({f"one {name}": find for name, find in streams.items()}, [one], [true]),
        ):
            for name, find in find_all.items():
                found = [find(scores) for scores in of_videos]
                right = sum(count_right(f, t) for f, t in zip(found, of_truths, strict=True))
                counts.setdefault(name, []).append((right, sum(map(len, found)), sum(map(len, of_truths))))
    print(
        f"{options.matching}, {options.shots} examples a class, half {options.half!r}: {options.draws} draws of "
        f"{VIDEOS * EVENTS} events in {VIDEOS} videos, {seconds:.0f} s in total; "
        f"{time.perf_counter() - start:.0f} s of computation or reading"
    )
    for name, of_draws in counts.items():
        right, count, total = map(sum, zip(*of_draws, strict=True))
        each = [2 * r / (c + t) for r, c, t in of_draws]
        print(
            f"  {name:<30} F1 {2 * right / (count + total):.2f} ({min(each):.2f} to {max(each):.2f})   "
            f"{right} of {total} events, {count} found"
        )


if __name__ == "__main__":
    main()
