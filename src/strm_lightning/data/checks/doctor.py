"""`strm doctor`: compare a data folder with a split, and report whether training can start."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from strm_lightning.data.checks.pretraining import seen_in_pretraining
from strm_lightning.data.checks.verify import verify
from strm_lightning.data.detect import list_videos
from strm_lightning.data.names import youtube_id
from strm_lightning.data.sampling import FramePolicy
from strm_lightning.data.sources.base import LayoutOption
from strm_lightning.data.splits.lists import read_lists
from strm_lightning.data.splits.match import SplitMatch, match_split
from strm_lightning.data.splits.split import Split, SplitOption, resolve_split
from strm_lightning.data.splits.stages import STAGES, Stage
from strm_lightning.data.transforms import ClipTransform
from strm_lightning.errors import InputError
from strm_lightning.fileio import write_atomically
from strm_lightning.messages import check_not_negative, check_positive, count_of, some_of

_DIRECTIONS = re.compile(r"\b(left|right|clockwise|counter-?clockwise|leftwards?|rightwards?|cw|ccw)\b", re.IGNORECASE)
_SSV2_NOTE = (
    "568 of the 2,400 ssv2-small test videos are in ssv2-full train: do not test a model on one of these splits after "
    "training on the other"
)


@dataclass(frozen=True)
class ClassReport:
    """Number of videos of one class.

    Attributes:
        name: class name.
        stage: train, val or test.
        listed: videos in the split, or None for a split by class.
        found: videos on disk.
        usable: videos that can be read and are not dropped as too short.
    """

    name: str
    stage: Stage
    listed: int | None
    found: int
    usable: int


@dataclass(frozen=True)
class DoctorReport:
    """Result of comparing a data folder with a split.

    Attributes:
        root: the folder.
        layout: its layout.
        split: name of the split.
        classes: number of videos of each class.
        missing: classes or ``class/video`` entries of each stage that are not on disk.
        renamed: name on disk, and kind of match, of each entry that has another name on disk.
        unreadable: error of each video that cannot be read.
        short: number of frames of each video with fewer frames than a clip.
        frames: minimum, median, maximum and total number of frames of the readable videos.
        leaks: videos that are in two stages.
        unused: number of videos on disk that are not in the split.
        problems: errors that prevent training.
        warnings: problems that do not prevent training.
    """

    root: str
    layout: str
    split: str
    classes: list[ClassReport]
    missing: dict[Stage, list[str]]
    renamed: dict[str, tuple[str, str]]
    unreadable: dict[str, str]
    short: dict[str, int]
    frames: tuple[int, int, int, int]
    leaks: list[str]
    unused: int
    problems: list[str]
    warnings: list[str]

    @property
    def status(self) -> int:
        """The exit status, 0 if training can start, else 1."""
        return 1 if self.problems else 0

    def as_json(self) -> str:
        """Return the complete report as JSON."""
        return json.dumps(asdict(self) | {"status": self.status}, indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        lines = [f"{self.root} (layout {self.layout}), split {self.split}", ""]
        lines += [f"{'':8}{'classes':>9}{'listed':>9}{'found':>9}{'usable':>9}"]
        for stage in STAGES:
            classes = [c for c in self.classes if c.stage == stage]
            listed = "-" if any(c.listed is None for c in classes) else str(sum(c.listed or 0 for c in classes))
            if classes:
                found, usable = sum(c.found for c in classes), sum(c.usable for c in classes)
                lines.append(f"{stage:8}{len(classes):9}{listed:>9}{found:9}{usable:9}{_share(classes)}")
        lines += _losses(self.classes)
        least, middle, most, total = self.frames
        lines += ["", f"frames: {least} to {most} a video, median {middle}, {total} in total"]
        lines += _few("missing", [name for stage in STAGES for name in self.missing.get(stage, [])])
        lines += _few("unreadable", [f"{name} ({reason})" for name, reason in self.unreadable.items()])
        lines += _few("shorter than a clip", [f"{name} ({frames} frames)" for name, frames in self.short.items()])
        for how, number in sorted(Counter(how for _, how in self.renamed.values()).items()):
            some = [f"{listed} is {name}" for listed, (name, by) in self.renamed.items() if by == how]
            lines += _few(f"matched by {how}", some, number, most=1)
        lines += _few("in two stages", self.leaks)
        lines += [f"not in the split: {count_of(range(self.unused), 'video')}"] if self.unused else []
        lines += ["", *(f"warning: {text}" for text in self.warnings), *(f"PROBLEM: {text}" for text in self.problems)]
        return "\n".join([*lines, "Training can start." if not self.problems else "Training cannot start."])


def doctor(
    root: str,
    split: SplitOption = "random",
    *,
    lists: str | None = None,
    other_lists: str | None = None,
    layout: LayoutOption = "auto",
    way: int = 5,
    shot: int = 5,
    query_per_class: int = 5,
    num_frames: int = 8,
    image_size: int = 224,
    short_side: int | None = None,
    frame_policy: FramePolicy = "segments",
    short_clips: Literal["repeat", "drop"] = "repeat",
    flip: bool = True,
    backbone: str | None = None,
    seed: int = 0,
    deep: bool = False,
    json_file: str | None = None,
) -> DoctorReport:
    """Compare a data folder with a split: find missing, unreadable, short, renamed, too few or leaked videos.

    Args:
        root: folder (or zip) of videos or frames, or a frame cache.
        split: as for training: ``random``, shares, class names, a published split, or a folder of list files.
        lists: folder of the list files of the split.
        other_lists: folder of the list files of another split, to count test videos of one in training of the other.
        layout: layout of the videos under ``root``; ``auto`` detects it.
        way: classes of an episode, N.
        shot: support clips of a class, K.
        query_per_class: query clips of a class.
        num_frames: frames of a clip, L.
        image_size: height and width of a clip in pixels; a cache of smaller frames is a problem.
        short_side: short side of the frames before the crop, in pixels; None for ``image_size`` x 256 / 224.
        frame_policy: policy that chooses the frames of a clip; a cache without these frames is a problem.
        short_clips: for videos of fewer than L frames, ``repeat`` frames or ``drop`` the video.
        flip: whether training clips are mirrored at random.
        backbone: name of the backbone, to warn if its pretrained weights have seen the test classes.
        seed: seed of a random split.
        deep: also decode every image of frame folders and zips, and verify every checksum of a cache (slow).
        json_file: also write the complete report to this file as JSON.

    Raises:
        MissingFileError: the root or the lists do not exist.
        InputError: the root has no videos, or an option is wrong.
    """
    check_positive(way=way, shot=shot, num_frames=num_frames)
    check_not_negative(query_per_class=query_per_class)
    listing = list_videos(root, layout)
    resolved = resolve_split(split, lists=lists, class_names=listing.class_names, seed=seed)
    match = match_split(listing, resolved)
    counts = listing.count(match.names, progress=True)
    frames = {name: count for name, count in counts.items() if isinstance(count, int)}
    unreadable = {name: reason for name, reason in counts.items() if isinstance(reason, str)}
    if deep:
        unreadable |= verify(listing, frames)
    frames = {name: count for name, count in frames.items() if name not in unreadable}
    short = {name: count for name, count in frames.items() if count < num_frames}
    usable = set(frames) - (set(short) if short_clips == "drop" else set())
    classes = list(_classes(resolved, match, usable))
    leaks = _leaks(match)
    problems = list(_problems(classes, way, shot, query_per_class))
    if frames:
        try:
            listing.open(frames, unreadable).check_supports(
                frame_policy, num_frames, ClipTransform(image_size, short_side or 0).short_side
            )
        except InputError as error:
            problems.append(str(error))
    counted = sorted(frames.values()) or [0]
    report = DoctorReport(
        root=str(listing.root),
        layout=listing.layout,
        split=resolved.name,
        classes=classes,
        missing=match.missing,
        renamed={listed: (found.name, found.how) for listed, found in match.renamed.items()},
        unreadable=unreadable,
        short=short,
        frames=(counted[0], int(median(counted)), counted[-1], sum(counted)),
        leaks=leaks,
        unused=len(listing.paths) - len(match.names),
        problems=problems,
        warnings=[
            *_warnings(resolved, leaks, flip, None if other_lists is None else Path(other_lists)),
            *_pretraining(resolved, backbone),
        ],
    )
    if json_file is not None:
        write_atomically(Path(json_file).expanduser(), report.as_json())
    return report


def _classes(split: Split, match: SplitMatch, usable: set[str]) -> Iterable[ClassReport]:
    for stage in STAGES:
        listed = None if split.videos is None else Counter(name for name, _ in split.videos[stage])
        for name in split.classes[stage]:
            found = set(match.found[stage][name])
            yield ClassReport(name, stage, None if listed is None else listed[name], len(found), len(found & usable))


def _problems(classes: list[ClassReport], way: int, shot: int, query_per_class: int) -> Iterable[str]:
    need = shot + query_per_class
    shape = f"{way}-way {shot}-shot with {query_per_class} queries a class"
    for stage in STAGES:
        present = [c for c in classes if c.stage == stage and c.usable]
        if len(present) < way and (stage != "val" or any(c.stage == stage for c in classes)):
            yield f"{stage} has {count_of(present, 'class')}; {shape} needs {way}"
        small = [f"{c.name!r} has {c.usable}" for c in present if c.usable < need]
        if small:
            yield f"{some_of(stage, small)}; {shape} needs {need} clips a class"


def _leaks(match: SplitMatch) -> list[str]:
    """Find videos in two stages: the same file, or the same name if names are unique inside each stage."""
    names = {s: [name for names in classes.values() for name in set(names)] for s, classes in match.found.items()}
    ids = {stage: [_video_id(name) for name in listed] for stage, listed in names.items()}
    unique = all(len(set(listed)) == len(listed) for listed in ids.values())
    stages: dict[str, list[Stage]] = {}
    for stage, listed in (ids if unique else names).items():
        for name in set(listed):
            stages.setdefault(name, []).append(stage)
    return [f"{name} ({' and '.join(found)})" for name, found in sorted(stages.items()) if len(found) > 1]


def _video_id(name: str) -> str:
    video = name.rpartition("/")[2]
    return youtube_id(video) or video


def _warnings(split: Split, leaks: list[str], flip: bool, other_lists: Path | None) -> Iterable[str]:
    if leaks:
        yield f"{count_of(leaks, 'video')} in two stages: the accuracy will be too high"
    directed = [name for stage in STAGES for name in split.classes[stage] if _DIRECTIONS.search(name.replace("_", " "))]
    if flip and directed:
        yield some_of("flip is on, but classes name directions (set --data.flip=false)", directed)
    if split.name.startswith("ssv2"):
        yield _SSV2_NOTE
    if other_lists is not None:
        yield from _overlap(split, read_lists(other_lists), other_lists)


def _pretraining(split: Split, backbone: str | None) -> Iterable[str]:
    if backbone is not None and backbone.startswith("torchvision/"):
        pretrained_on = "Kinetics-400"
        if warning := seen_in_pretraining(split.name, pretrained_on):
            yield f"backbone {backbone} has published weights from {pretrained_on}: {warning}"


def _overlap(split: Split, other: Mapping[Stage, tuple[tuple[str, str], ...]], name: Path) -> Iterable[str]:
    if split.videos is None:
        yield f"split {split.name!r} is by class; its videos cannot be compared with {name}"
        return
    for tested, trained, text in (
        (split.videos["test"], other["train"], f"test videos are training videos in {name}"),
        (other["test"], split.videos["train"], f"training videos are test videos in {name}"),
    ):
        seen = {_video_id(video) for _, video in trained}
        common = sum(_video_id(video) in seen for _, video in tested)
        if common:
            yield f"{common} {text}"


def _losses(classes: list[ClassReport], most: int = 10) -> list[str]:
    """Describe the classes with missing or unusable videos, by share; the JSON has all of them."""
    lossy = [c for c in classes if c.usable < (c.found if c.listed is None else c.listed) or not c.found]
    lossy.sort(key=lambda c: c.usable / (c.listed or c.found or 1))
    lines = [
        f"  {c.listed if c.listed is not None else '-':>15}{c.found:9}{c.usable:9}  {c.name}" for c in lossy[:most]
    ]
    lines += [f"  and {len(lossy) - most} more classes"] if lossy[most:] else []
    return ["", "classes with missing or unusable videos:", *lines] if lossy else []


def _share(classes: list[ClassReport]) -> str:
    listed = sum(c.listed or 0 for c in classes)
    return f"{sum(c.usable for c in classes) / listed:9.1%}" if listed else ""


def _few(title: str, items: list[str], number: int | None = None, most: int = 3) -> list[str]:
    if not items:
        return []
    number = number or len(items)
    rest = f" and {number - most} more" if number > most else ""
    return [f"{title}: {number} ({', '.join(items[:most])}{rest})"]
