"""The commands ``strm classify`` and ``strm demo``."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from strm_lightning.classifier import loading
from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.clips import check_first_frame
from strm_lightning.classifier.examples import bar_options
from strm_lightning.classifier.predictions import merge_windows
from strm_lightning.classifier.reports import REPORTS, Found, Report
from strm_lightning.classifier.uploads import Uploads, upload_folder
from strm_lightning.data.layouts import list_videos
from strm_lightning.data.videos import VIDEO_SUFFIXES, VideoError
from strm_lightning.errors import InputError, MissingPackageError, WriteError


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
    json: bool = False,
    csv: bool = False,
    explain: str | None = None,
    save_support: str | None = None,
    jobs: int = 1,
    device: str | None = None,
) -> None:
    """Recognise actions in videos from a few example clips of each.

    Args:
        videos: video files, or folders of them.
        support: folder of examples, with a folder of clips for each class; or a file that ``--save_support`` wrote,
            which names its model.
        ckpt: checkpoint of a trained model; null for the matching ``patches`` on a pretrained backbone, or for the
            model that a file of examples names.
        backbone: timm model, where there is no ``ckpt``; null for EfficientNet-Lite0.
        weights: a file of its weights; null for the pretrained ones (of EfficientNet-Lite0 from the extra ``weights``).
        threshold: probability below which a video is ``unknown``; ``fit`` finds a better measure on the examples; null
            for never, or as a file of examples has it.
        temperature: divides the logits; ``fit`` finds it on the examples, where two classes or more have two clips or
            more; null for ``fit``, or as a file of examples has it.
        window: length in seconds of a sliding window, for long videos; null takes each video as one clip.
        stride: seconds from window to window; null for half a window.
        json: print one JSON object a line, with all probabilities, instead of the table.
        csv: print comma-separated values instead of the table.
        explain: draw why the first video got its label to this picture (.png, .pdf, .svg).
        save_support: write the encoded examples to this .safetensors file, for ``--support`` later.
        jobs: videos read at once.
        device: such as ``cuda:0``; null for the GPU where there is one.
    """
    files = find_videos(videos)
    _check(files, support, window, stride, save_support, both=json and csv)
    if explain is not None:
        from strm_lightning.classifier import picture

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
    findings = _findings(classifier, files, window, stride, merged=not (json or csv))
    total = len(files) if window is None else None
    # Rows on the screen show the progress by themselves.
    for video, found in tqdm(findings, "Classifying", total, disable=sys.stdout.isatty(), **bar_options()):
        bad += isinstance(found, VideoError)
        _print(report, video, found)
    if explain is not None and files:
        picture.draw(classifier.explain(files[0]), explain)
    if bad:
        raise SystemExit(1)


def _broken(files: Sequence[str]) -> dict[str, VideoError]:
    """The videos whose first frame cannot be decoded, with the errors; found before the examples are encoded."""
    found = {}
    for file in tqdm(files, "Checking videos", **bar_options()):
        try:
            check_first_frame(file)
        except VideoError as error:
            found[file] = error
    return found


def _print(report: Report, video: str, found: Found) -> None:
    """Print one row at once, so that a program that reads it need not wait."""
    try:
        report.add(video, found)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the rest of the buffer cannot be written at exit either
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
) -> None:
    """Refuse what cannot come to an end before anything is encoded."""
    if both:
        raise InputError("give --json or --csv, not both")
    if support is None:
        raise InputError("give --support: a folder with a folder of example clips for each class")
    if not files and save_support is None:
        raise InputError("no video to classify: name files, or folders of them")
    if window is None and stride is not None:
        raise InputError(f"--stride {stride:g} goes with --window, the length of a window in seconds")
    for name, seconds in (("window", window), ("stride", stride)):
        if seconds is not None and not seconds > 0:
            raise InputError(f"--{name} {seconds:g}: give a positive number of seconds")
    if save_support is not None and Path(save_support).is_dir():
        raise InputError(f"--save_support {save_support}: is a folder; name a file, such as actions.safetensors")


def _findings(
    classifier: FewShotClassifier, files: Sequence[str], window: float | None, stride: float | None, *, merged: bool
) -> Iterator[tuple[str, Found]]:
    if window is None:
        yield from zip(files, classifier.predict_each(files), strict=True)
        return
    for file in files:
        stretches = classifier.predict_windows(file, seconds=window, stride=stride)
        try:
            for stretch in merge_windows(stretches) if merged else stretches:
                yield file, stretch
        except VideoError as error:
            yield file, error


def find_videos(names: Sequence[str]) -> list[str]:
    """Files as they were named, and the video files of the folders among them, however deep, in order.

    Raises:
        ValueError: a folder has no video.
    """
    found = []
    for name in names:
        inside = _videos_in(Path(name))
        if Path(name).is_dir() and not inside:
            raise InputError(f"{name}: a folder without any video")
        found += inside or [name]
    return found


def _videos_in(folder: Path) -> list[str]:
    return sorted(str(file) for file in folder.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file())


def find_examples(folder: str) -> dict[str, list[str]]:
    """Videos by class, by the rule of `strm fit`: the class is the folder that holds the videos (see `list_files`).

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no videos in it, or a folder without any.
    """
    listing = list_videos(folder, "videos")
    for inner in sorted(listing.root.iterdir()):
        near = [video for video in _videos_in(inner) if len(Path(video).relative_to(inner).parts) < 3]
        if inner.is_dir() and inner.name[0] != "." and not near:
            raise InputError(f"class {inner.name!r} has no video: {inner} has none; remove the folder")
    return {name: [listing.places[video] for video in listing.by_class[name]] for name in listing.class_names}


def open_classifier(
    support: str,
    *,
    ckpt: str | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    device: str | None = None,
    **options: Any,
) -> FewShotClassifier:
    """A classifier with examples from a folder or from a file; `classify` explains the arguments."""
    stored = Path(support).is_file()
    if stored and ckpt is backbone is weights is None:
        return FewShotClassifier.load(support, device=device).set_params(**options)
    classifier = _without_examples(ckpt, backbone, weights, device, **options)
    if stored:
        return classifier.load(support).set_params(**options)
    with _plain_warnings():
        return classifier.fit(find_examples(support), progress=True)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Tell warnings in a line of words, without the line of code that they come from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _warn(str(message))
        yield


def _without_examples(
    ckpt: str | None, backbone: str | None, weights: str | None, device: str | None, **options: Any
) -> FewShotClassifier:
    if ckpt is not None:
        if backbone is not None or weights is not None:
            raise InputError("--ckpt brings a backbone and its weights: give it, or --backbone and --weights")
        return FewShotClassifier.from_checkpoint(ckpt, device=device, **options)
    name = backbone or loading.DEFAULT_BACKBONE
    return FewShotClassifier.from_backbone(name, weights=weights, device=device, **options)


def demo(
    *,
    ckpt: str | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_mb: int = 100,
    max_total_mb: int = 1000,
    device: str | None = None,
) -> None:
    """Open a web page on this computer that recognises actions from a few clips of each.

    Args:
        ckpt: checkpoint of a trained model; null for the matching ``patches`` on a pretrained backbone.
        backbone: timm model, where there is no ``ckpt``; null for EfficientNet-Lite0.
        weights: a file of its weights; null for the pretrained ones (of EfficientNet-Lite0 from the extra ``weights``).
        host: address to listen on; 0.0.0.0 lets other computers in, and whoever reaches it may use it.
        port: number of the port; null takes the first free one from 7860.
        max_mb: size in megabytes of the largest file that may be uploaded.
        max_total_mb: megabytes of all uploads together, with what is kept of them while their pages are open.
        device: such as ``cuda:0``; null for the GPU where there is one.
    """
    try:
        from strm_lightning.classifier import web
    except ModuleNotFoundError as error:
        raise MissingPackageError(f'the page needs {error.name}: in a checkout, run pip install ".[web]"') from error
    if max_mb < 1:
        raise InputError(f"--max_mb {max_mb}: give 1 megabyte or more")
    if max_total_mb < max_mb:
        raise InputError(f"--max_total_mb {max_total_mb}: give as much as --max_mb, {max_mb}, or more")
    web.check_address(host, port)
    plain = _without_examples(ckpt, backbone, weights, device)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads go then too, as with Ctrl-C
    with upload_folder() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # where gradio stores uploads
        uploads = Uploads(max_total_mb * 10**6)
        page = web.build(lambda: FewShotClassifier(plain.model, plain.preprocessing), folder / "examples", uploads)
        web.serve(page, uploads, host=host, port=port, max_mb=max_mb)
