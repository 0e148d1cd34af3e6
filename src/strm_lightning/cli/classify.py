"""``strm classify``: recognise actions in videos from example clips."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tqdm import tqdm

from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.clips import check_first_frame
from strm_lightning.classifier.live import DEFAULT_DELAY, LiveSource
from strm_lightning.classifier.predictions import WindowPrediction, merge_windows
from strm_lightning.classifier.progress import bar_options
from strm_lightning.classifier.videos import Video, VideoSource, find_examples, find_videos, video_name
from strm_lightning.cli.long_videos import LongVideos
from strm_lightning.cli.reports import REPORTS, Found, Report
from strm_lightning.data.decode.video import VideoError
from strm_lightning.errors import InputError, WriteError
from strm_lightning.messages import count_of

Examples: TypeAlias = dict[str, list[Video]] | str  # videos of each class, or a file of encoded ones


def classify(
    *videos: str,
    support: str | None = None,
    ckpt: str | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    matching: str | None = None,
    mirror: bool = False,
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
    delay: float = DEFAULT_DELAY,
    json: bool = False,
    csv: bool = False,
    explain: str | None = None,
    save_support: str | None = None,
    check: bool = False,
    jobs: int = 1,
    device: str | None = None,
) -> None:
    """Recognise actions in videos from a few example clips of each class.

    Args:
        videos: video files, folders of frames, zips of frames, or folders of these.
        support: folder with a subfolder of example clips (video files or folders of frames) for each class; zip of
            ``<class>/<video>/00000001.jpg``; .csv table with the columns video, start, end and label; or a file that
            ``--save_support`` wrote.
        ckpt: checkpoint of a trained model; null for the model of the support file, or for a pretrained backbone.
        backbone: timm model to use without ``ckpt``; null for EfficientNet-Lite0.
        weights: file of the backbone's weights; null for pretrained weights (EfficientNet-Lite0: the extra
            ``weights``).
        matching: matching method to use without ``ckpt``; null for ``auto``, which weighs four ways of comparing clips
            by how well they separate the examples. ``patches`` is the default of version 0.1.
        mirror: an action and its mirror image are the same action; only without ``ckpt``.
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
        check: print a cross-validation of the examples: expected accuracy, confused classes, clips that look
            mislabelled or duplicated, and classes that need more clips. No video is needed.
        jobs: number of videos that are read at the same time.
        device: such as ``cuda:0``; null for the GPU if there is one.
    """
    files = find_videos(videos)
    long = LongVideos(events, length, srt, vtt, timeline, camera, stream, delay)
    long.check(files, window)
    needed = not (check or save_support or long.source is not None)
    _check(files, support, window, stride, save_support, both=json and csv, needed=needed)
    examples = examples_in(str(support))
    long.check_durations(examples)
    source = None if long.source is None else LiveSource(long.source).check()
    broken = _broken(files)
    if explain is not None:
        from strm_lightning.classifier.explain import picture

        picture.check_name(explain)
        if files and files[0] in broken:
            raise broken[files[0]]
    report = REPORTS["json" if json else "csv" if csv else "table"](list(map(video_name, files)))
    if files and len(broken) == len(files) and save_support is None:
        for video, error in broken.items():
            _print(report, video, error)
        raise SystemExit(1)
    for error in broken.values():
        _warn(str(error))
    given = _given(threshold=threshold, temperature=temperature)
    model = Model(ckpt, backbone, weights, matching, mirror, device)
    with one_line_warnings():
        classifier = open_classifier(examples, model, jobs=jobs, **given)
        _describe(classifier, save_support, check=check)
        findings = _findings(classifier, files, window, stride, long, source, merged=not (json or csv))
        # Rows on a terminal show the progress; a bar of its own shows that of a long video.
        silent = sys.stdout.isatty() or window is not None or events or source is not None
        bad = 0
        with tqdm(findings, "Classifying", len(files), disable=silent, **bar_options()) as bar:
            for video, found in bar:
                bad += isinstance(found, VideoError)
                _print(report, video, found)
        if explain is not None and files:
            picture.draw(classifier.explain(files[0]), explain)
    if bad:
        raise SystemExit(1)


def _describe(classifier: FewShotClassifier, save_support: str | None, *, check: bool) -> None:
    """Print the matching in use and the check of the examples, and save the examples."""
    _note(str(classifier.selection_))
    if check:
        sys.stdout.write(f"{classifier.check()}\n")
    if save_support is not None:
        classifier.save(save_support)
        _note(f"{save_support}: saved {count_of(classifier.support.labels, 'class')}")


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _broken(files: Sequence[Video]) -> dict[Video, VideoError]:
    """Return the videos whose first frame cannot be decoded, with their errors."""
    found: dict[Video, VideoError] = {}
    for file in tqdm(files, "Checking videos", **bar_options()):
        assert isinstance(file, (str, Path, VideoSource))
        try:
            check_first_frame(file)
        except VideoError as error:
            found[file] = error
    return found


def _print(report: Report, video: Video, found: Found) -> None:
    """Print one row without buffering, for programs that read the output."""
    # On a terminal, the bar of a long video is removed and drawn again below the row.
    shared = sys.stdout.isatty() and sys.stderr.isatty()
    try:
        with tqdm.external_write_mode(file=sys.stdout) if shared else nullcontext():
            report.add(video_name(video), found)
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the flush at exit would fail again
        raise WriteError(f"standard output: cannot be written ({error.strerror})") from error


def _warn(message: str) -> None:
    _note(f"warning: {message}")


def _note(message: str) -> None:
    if sys.stderr.isatty():
        tqdm.write(message, file=sys.stderr)
    else:  # in a log a bar starts late; `tqdm.write` would draw it at once
        sys.stderr.write(f"{message}\n")


def _check(
    files: Sequence[Video],
    support: str | None,
    window: float | None,
    stride: float | None,
    save_support: str | None,
    *,
    both: bool,
    needed: bool,
) -> None:
    """Check the options before anything is encoded."""
    if both:
        raise InputError("--json and --csv exclude each other")
    if support is None:
        raise InputError("--support is missing: give a folder with a subfolder of example clips for each class")
    if not files and needed:
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
    files: Sequence[Video],
    window: float | None,
    stride: float | None,
    long: LongVideos,
    source: LiveSource | None,
    *,
    merged: bool,
) -> Iterator[tuple[Video, Found]]:
    if source is not None:
        yield from long.watch(classifier, source)
        return
    if window is None and not long.events:
        yield from zip(files, classifier.predict_each(files), strict=True)
        return
    for file in files:
        if window is None:
            stretches: Iterator[WindowPrediction] = long.find(classifier, file)
        else:
            stretches = classifier.predict_windows(file, seconds=window, stride=stride, progress=True)
        try:
            for stretch in merge_windows(stretches) if merged and window is not None else stretches:
                yield file, stretch
        except VideoError as error:
            yield file, error


@dataclass(frozen=True)
class Model:
    """Options of a command that choose the model; for the attributes see `classify`."""

    ckpt: str | None = None
    backbone: str | None = None
    weights: str | None = None
    matching: str | None = None
    mirror: bool = False
    device: str | None = None

    def build(self, **options: Any) -> FewShotClassifier:
        """Return a classifier without examples, on a checkpoint or a pretrained backbone.

        Raises:
            InputError: the options exclude each other.
        """
        if self.ckpt is not None:
            given = {"--backbone": self.backbone, "--weights": self.weights, "--matching": self.matching}
            for name, value in {**given, "--mirror": self.mirror or None}.items():
                if value is not None:
                    raise InputError(f"--ckpt excludes {name}: a checkpoint contains backbone, weights and matching")
            return FewShotClassifier.from_checkpoint(self.ckpt, device=self.device, **options)
        return FewShotClassifier.from_backbone(**self.given(), **options)

    def given(self) -> dict[str, Any]:
        """Return the given values as arguments of `FewShotClassifier.from_backbone`."""
        values: dict[str, Any] = {
            "backbone": self.backbone,
            "weights": self.weights,
            "matching": self.matching,
            "device": self.device,
        }
        values["matching_options"] = {"mirror": True} if self.mirror else None
        return {name: value for name, value in values.items() if value is not None}


def examples_in(support: str) -> Examples:
    """Return the example videos of each class in a folder, zip or table; a file of encoded examples as it is.

    Raises:
        MissingFileError: there is no such file or folder.
        InputError: see `find_examples`.
    """
    encoded = Path(support).is_file() and Path(support).suffix.lower() not in (".csv", ".zip")
    with one_line_warnings():
        return support if encoded else find_examples(support)


def open_classifier(examples: Examples, model: Model, **options: Any) -> FewShotClassifier:
    """Return a classifier with examples.

    Args:
        examples: result of `examples_in`.
        model: the model; values that are not given are those of a file of examples.
        **options: arguments of the classifier.
    """
    encoded = isinstance(examples, str)
    if encoded and model.ckpt is None:
        return FewShotClassifier.load(examples, **model.given()).set_params(**options)
    classifier = model.build(**options)
    if encoded:
        return classifier.load(examples).set_params(**options)
    with one_line_warnings():
        return classifier.fit(examples, progress=True)


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Print the message of a warning without its source line."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _warn(str(message))
        yield
