"""``strm classify``: recognise actions in videos from example clips."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from strm_lightning.classifier import load_model
from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.clips import check_first_frame
from strm_lightning.classifier.examples import bar_options
from strm_lightning.classifier.predictions import merge_windows
from strm_lightning.cli.long_videos import LongVideos
from strm_lightning.cli.reports import REPORTS, Found, Report
from strm_lightning.data.decode.video import VIDEO_SUFFIXES, VideoError
from strm_lightning.data.detect import list_videos
from strm_lightning.errors import InputError, WriteError


def classify(
    *videos: str,
    support: str | None = None,
    ckpt: str | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    threshold: float | Literal["fit"] | None = None,
    temperature: float | Literal["fit"] | None = None,
    window: float | None = None,
    stride: float | None = None,
    events: bool = False,
    length: float | None = None,
    srt: str | None = None,
    vtt: str | None = None,
    timeline: str | None = None,
    camera: int | None = None,
    stream: str | None = None,
    delay: float = 3.0,
    json: bool = False,
    csv: bool = False,
    explain: str | None = None,
    save_support: str | None = None,
    jobs: int = 1,
    device: str | None = None,
) -> None:
    """Recognise actions in videos from a few example clips of each class.

    Args:
        videos: video files, or folders of video files.
        support: folder with a subfolder of example clips for each class, or a file that ``--save_support`` wrote.
        ckpt: checkpoint of a trained model; null for the model of the support file, or for a pretrained backbone whose
            patches are compared (matching ``patches``).
        backbone: timm model to use without ``ckpt``; null for EfficientNet-Lite0.
        weights: file of the backbone's weights; null for pretrained weights (EfficientNet-Lite0: the extra
            ``weights``).
        threshold: probability below which a video is ``unknown``; ``fit`` fits a threshold on the logit to the
            examples; null for no threshold, or for the support file's.
        temperature: divides the logits; ``fit`` fits it to the examples, if at least two classes have at least two
            clips; null for ``fit``, or for the support file's.
        window: length in seconds of a sliding window, for long videos; null classifies each video as one clip.
        stride: seconds between the starts of two windows; null for half a window.
        events: find the events in long videos: when each action starts and ends. The lengths of windows follow the
            durations of the examples.
        length: duration of an action in seconds, for events; null for the durations of the examples.
        srt: write the events of a video to this subtitle file (SubRip), with ``--events``.
        vtt: write the events of a video to this subtitle file (WebVTT), with ``--events``.
        timeline: draw the events of a video to this file (.png, .pdf, .svg), with ``--events``.
        camera: number of a camera whose events are printed as they happen, until Ctrl-C.
        stream: address that FFmpeg opens (RTSP, HTTP, a pipe), or a file that is played at its own pace; as ``camera``.
        delay: seconds after its end at which an event of a camera or stream is final. A larger delay is more accurate.
        json: print one JSON object per line, with all probabilities, instead of the table.
        csv: print comma-separated values instead of the table.
        explain: draw an explanation of the first video's label to this file (.png, .pdf, .svg).
        save_support: write the encoded examples to this .safetensors file, for a later ``--support``.
        jobs: number of videos that are read at the same time.
        device: such as ``cuda:0``; null for the GPU if there is one.
    """
    files = find_videos(videos)
    long = LongVideos(events, length, srt, vtt, timeline, camera, stream, delay)
    long.check(files, window)
    _check(files, support, window, stride, save_support, both=json and csv, live=long.source is not None)
    if explain is not None:
        from strm_lightning.classifier.explain import picture

        picture.check_name(explain)
    broken = _broken(files)
    if explain is not None and files and files[0] in broken:
        raise broken[files[0]]
    report = REPORTS["json" if json else "csv" if csv else "table"](files)
    if files and len(broken) == len(files) and save_support is None:
        for video, error in broken.items():
            _print(report, video, error)
        raise SystemExit(1)
    for error in broken.values():
        _warn(str(error))
    options = {"threshold": threshold, "temperature": temperature}
    given = {name: value for name, value in options.items() if value is not None}
    classifier = open_classifier(
        str(support), ckpt=ckpt, backbone=backbone, weights=weights, device=device, jobs=jobs, **given
    )
    if save_support is not None:
        classifier.save(save_support)
    bad = 0
    findings = _findings(classifier, files, window, stride, long, merged=not (json or csv))
    total = len(files) if window is None and not events and long.source is None else None
    # On a terminal, the printed rows show the progress.
    for video, found in tqdm(findings, "Classifying", total, disable=sys.stdout.isatty(), **bar_options()):
        bad += isinstance(found, VideoError)
        _print(report, video, found)
    if explain is not None and files:
        picture.draw(classifier.explain(files[0]), explain)
    if bad:
        raise SystemExit(1)


def _broken(files: Sequence[str]) -> dict[str, VideoError]:
    """Return the videos whose first frame cannot be decoded, with their errors."""
    found = {}
    for file in tqdm(files, "Checking videos", **bar_options()):
        try:
            check_first_frame(file)
        except VideoError as error:
            found[file] = error
    return found


def _print(report: Report, video: str, found: Found) -> None:
    """Print one row without buffering, for programs that read the output."""
    try:
        report.add(video, found)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the flush at exit would fail again
        raise WriteError(f"standard output: cannot be written ({error.strerror})") from error


def _warn(message: str) -> None:
    if sys.stderr.isatty():
        tqdm.write(f"warning: {message}", file=sys.stderr)
    else:  # in a log a bar starts late; `tqdm.write` would draw it at once
        sys.stderr.write(f"warning: {message}\n")


def _check(
    files: Sequence[str],
    support: str | None,
    window: float | None,
    stride: float | None,
    save_support: str | None,
    *,
    both: bool,
    live: bool,
) -> None:
    """Check the options before anything is encoded."""
    if both:
        raise InputError("--json and --csv exclude each other")
    if support is None:
        raise InputError("--support is missing: give a folder with a subfolder of example clips for each class")
    if not files and save_support is None and not live:
        raise InputError("no video to classify: give video files or folders of video files")
    if window is None and stride is not None:
        raise InputError(f"--stride {stride:g} needs --window, the length of a window in seconds")
    for name, seconds in (("window", window), ("stride", stride)):
        if seconds is not None and not seconds > 0:
            raise InputError(f"--{name} {seconds:g}: give a positive number of seconds")
    if save_support is not None and Path(save_support).is_dir():
        raise InputError(f"--save_support {save_support}: is a folder; give a file, such as actions.safetensors")


def _findings(
    classifier: FewShotClassifier,
    files: Sequence[str],
    window: float | None,
    stride: float | None,
    long: LongVideos,
    *,
    merged: bool,
) -> Iterator[tuple[str, Found]]:
    if long.source is not None:
        yield from long.watch(classifier)
        return
    if window is None and not long.events:
        yield from zip(files, classifier.predict_each(files), strict=True)
        return
    for file in files:
        if window is None:
            stretches = long.find(classifier, file)
        else:
            stretches = classifier.predict_windows(file, seconds=window, stride=stride)
        try:
            for stretch in merge_windows(stretches) if merged and window is not None else stretches:
                yield file, stretch
        except VideoError as error:
            yield file, error


def find_videos(names: Sequence[str]) -> list[str]:
    """Replace each folder by the video files in it and its subfolders, sorted; keep the other names.

    Raises:
        InputError: a folder contains no video.
    """
    found = []
    for name in names:
        inside = _videos_in(Path(name))
        if Path(name).is_dir() and not inside:
            raise InputError(f"{name}: the folder contains no video")
        found += inside or [name]
    return found


def _videos_in(folder: Path) -> list[str]:
    return sorted(str(file) for file in folder.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file())


def find_examples(folder: str) -> dict[str, list[str]]:
    """Return the video files of each class; as for `strm fit`, the class is the name of the folder of a video.

    Raises:
        MissingFileError: the folder does not exist.
        InputError: the folder or one of its subfolders contains no video.
    """
    listing = list_videos(folder, "videos")
    for inner in sorted(listing.root.iterdir()):
        near = [video for video in _videos_in(inner) if len(Path(video).relative_to(inner).parts) < 3]
        if inner.is_dir() and inner.name[0] != "." and not near:
            raise InputError(f"class {inner.name!r} has no video: remove the folder {inner} or add videos to it")
    return {name: [listing.paths[video] for video in listing.by_class[name]] for name in listing.class_names}


def open_classifier(
    support: str,
    *,
    ckpt: str | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    device: str | None = None,
    **options: Any,
) -> FewShotClassifier:
    """Return a classifier with examples from a folder or a file; for the arguments see `classify`."""
    stored = Path(support).is_file()
    if stored and ckpt is backbone is weights is None:
        return FewShotClassifier.load(support, device=device).set_params(**options)
    classifier = classifier_without_examples(ckpt, backbone, weights, device, **options)
    if stored:
        return classifier.load(support).set_params(**options)
    with _one_line_warnings():
        return classifier.fit(find_examples(support), progress=True)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Print the message of a warning without its source line."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _warn(str(message))
        yield


def classifier_without_examples(
    ckpt: str | None, backbone: str | None, weights: str | None, device: str | None, **options: Any
) -> FewShotClassifier:
    """Return a classifier without examples, on a checkpoint or a pretrained backbone."""
    if ckpt is not None:
        if backbone is not None or weights is not None:
            raise InputError("--ckpt excludes --backbone and --weights: a checkpoint contains both")
        return FewShotClassifier.from_checkpoint(ckpt, device=device, **options)
    name = backbone or load_model.DEFAULT_BACKBONE
    return FewShotClassifier.from_backbone(name, weights=weights, device=device, **options)
