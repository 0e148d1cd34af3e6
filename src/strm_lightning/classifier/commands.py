"""The commands ``strm classify`` and ``strm demo``."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from strm_lightning.classifier.calibration import Fitted
from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.predictions import WindowPrediction, clock, merge_windows
from strm_lightning.data.layouts import list_videos
from strm_lightning.data.videos import VIDEO_SUFFIXES, VideoError

_COLUMNS = ("video", "start", "end", "label", "probability")


def classify(
    *videos: str,
    support: str,
    ckpt: str | None = None,
    backbone: str = "tf_efficientnet_lite0",
    weights: str | None = "pip:efficientnet_lite0",
    threshold: float | Literal["fit"] | None = None,
    temperature: float | Literal["fit"] = "fit",
    window: float | None = None,
    stride: float | None = None,
    top: int = 3,
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
        support: folder of examples, one folder of clips a class, or a file that ``--save_support`` wrote.
        ckpt: checkpoint of a trained model; without, the bare backbone compares patches frame by frame.
        backbone: timm model, where there is no ``ckpt``.
        weights: its weights: a file, ``pip:efficientnet_lite0`` from the extra ``weights``, or null for timm's own.
        threshold: probability below which a video is ``unknown``; ``fit`` finds it on the examples.
        temperature: divides the logits; ``fit`` finds it on the examples where every class has two clips or more.
        window: length in seconds of a sliding window, for long videos; null takes each video as one clip.
        stride: seconds from window to window; null for half a window.
        top: classes shown of each video in the table.
        json: print one JSON object a video, with all probabilities, instead of the table.
        csv: print comma-separated values instead of the table.
        explain: draw why the first video got its label to this picture (.png, .pdf, .svg).
        save_support: write the encoded examples to this .safetensors file, to be given as ``--support`` later.
        jobs: videos read at once.
        device: such as ``cuda:0``; null for the GPU where there is one.
    """
    if json and csv:
        raise ValueError("give --json or --csv, not both")
    files = find_videos(videos)
    classifier = open_classifier(
        support, ckpt=ckpt, backbone=backbone, weights=weights, device=device, jobs=jobs
    ).set_params(threshold=threshold, temperature=temperature)
    if save_support is not None:
        classifier.save(save_support)
    if not files and save_support is None:
        raise ValueError("no video to classify: name files or folders of videos")
    printer = (_print_json if json else _print_csv if csv else _print_table)(top)
    bad = 0
    for item in tqdm(_predictions(classifier, files, window, stride), total=len(files), unit="video", disable=_quiet(files)):
        if isinstance(item, VideoError):
            bad += 1
            tqdm.write(f"left out: {item}", file=sys.stderr)
        else:
            printer(item)
    if explain is not None and files:
        from strm_lightning.classifier.picture import draw

        draw(classifier.explain(files[0]), explain)
    if bad:
        raise SystemExit(1)
