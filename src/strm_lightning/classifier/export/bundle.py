"""Write the folder of an exported classifier, and check it before it gets its name."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from strm_lightning._version import __version__
from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.clips import read_clip
from strm_lightning.classifier.export import agreement, graphs, quantize
from strm_lightning.classifier.export.parity import Parity, check_parity
from strm_lightning.classifier.progress import bar_options
from strm_lightning.classifier.storage import fingerprint
from strm_lightning.classifier.videos import Video
from strm_lightning.errors import InputError
from strm_lightning.fileio import atomic_folder, write_errors

_FORMAT = "strm-lightning export 1"
_RUNNER = Path(__file__).with_name("predict.py")


def export_classifier(
    classifier: FewShotClassifier,
    folder: str | Path,
    *,
    check: Sequence[Video] = (),
    int8: bool = False,
    progress: bool = False,
    on_step: Callable[[str], object] | None = None,
) -> Parity:
    """Export a classifier to ONNX, as a folder that works without torch and without this package.

    The folder contains ``encode.onnx`` (frames to encoded tensors), ``match.onnx`` (prepared examples and queries to
    logits), ``examples.npz``, ``model.json`` (preprocessing, labels, temperature, threshold) and ``predict.py``, which
    predicts with onnxruntime, numpy and PyAV. It is written to a temporary folder and renamed when `check_parity` finds
    the same predictions as PyTorch.

    With ``int8``, the convolutions of ``encode.onnx`` are then converted to int8, which makes it about a third as large
    and faster. The ranges of values are measured on examples, or on half of ``check`` if the examples have no video
    files, and `check_agreement` compares labels on other clips.

    Without examples, ``predict.py --examples`` encodes them; methods that compute something from all examples, such as
    ``kernel_ridge``, cannot be exported without.

    Args:
        classifier: the classifier, on the CPU.
        folder: the folder to write: absent or empty.
        check: videos that are not among the examples, to compare predictions on; if there are none, the examples are
            left out one by one.
        int8: convert the convolutions of the encoding to int8.
        progress: show progress bars.
        on_step: called with the name of each step when it begins.

    Returns:
        What was compared, and the largest difference.

    Raises:
        MissingPackageError: a package of the extra ``export`` is not installed.
        InputError: the folder is not empty, the model cannot be converted, or predictions differ. With ``int8``, also
            if there are no videos to measure or to compare on.
        VideoError: a video of ``check`` cannot be read.
        WriteError: the folder cannot be written.
    """
    graphs.check_packages()
    folder = Path(folder)
    check_folder(folder)
    model, support = classifier.model, classifier.support
    if support.device.type != "cpu":
        raise InputError(f"export from {support.device}: build the classifier with device='cpu'")
    if len(support.clips) == 1:
        raise InputError("examples of 1 class: give clips of 2 or more, or none")
    if not support.clips and not graphs.takes_any_examples(model):
        raise InputError(
            f"matching {model.head.matching_name!r} is fitted to the examples before the export: give examples"
        )
    clips = None
    if int8:
        quantize.check_backbone(model)
        clips = agreement.choose_clips(support, check)
    step = on_step or str
    with atomic_folder(folder) as part:
        with write_errors(folder):
            _write(classifier, part, "float32" if clips is None else "int8", progress, step)
        step("comparing with PyTorch")
        parity = check_parity(classifier, part, check, progress=progress)
        if clips is None:
            return parity
        step("converting the encoding to int8")
        size = (part / "encode.onnx").stat().st_size
        with write_errors(folder):
            quantize.quantize_encoding(part / "encode.onnx", _pixels(classifier, clips.measured, progress))
        step("comparing int8 with PyTorch")
        return replace(parity, int8=agreement.check_agreement(classifier, part, clips, size, progress=progress))


def _pixels(classifier: FewShotClassifier, videos: Sequence[Video], progress: bool) -> Iterator[np.ndarray]:
    for video in tqdm(videos, "Measuring ranges for int8", unit="clip", disable=not progress, **bar_options()):
        yield read_clip(video, classifier.preprocessing).numpy()


def _write(
    classifier: FewShotClassifier, folder: Path, encoding: str, progress: bool, on_step: Callable[[str], object]
) -> None:
    about = {**_about(classifier), "encoding": encoding}
    model, support = classifier.model, classifier.support
    with tqdm(total=2, desc="Converting to ONNX", unit="file", disable=not progress, **bar_options()) as bar:
        on_step("converting the encoding")
        graphs.export_encoding(model, classifier.preprocessing.image_size, folder / "encode.onnx")
        bar.update()
        on_step("converting the matching")
        graphs.export_matching(model, classifier.qc_weight, folder / "match.onnx", shots=max(support.shots, default=2))
        bar.update()
    if support.clips:
        arrays, _ = graphs.example_arrays(support)
        np.savez(folder / "examples.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub has an option of bool
    (folder / "model.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
    shutil.copyfile(_RUNNER, folder / "predict.py")


def check_folder(folder: Path) -> None:
    """Check that a folder is absent or empty.

    Raises:
        InputError: it is not.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        kind = "is a file" if folder.is_file() else "is not empty"
        raise InputError(f"{folder}: {kind}; give a new folder")


def _about(classifier: FewShotClassifier) -> dict[str, Any]:
    how, support = classifier.preprocessing, classifier.support
    about: dict[str, Any] = {
        "format": _FORMAT,
        "made_with": {"strm-lightning": __version__, "torch": torch.__version__},
        "fingerprint": fingerprint(classifier.model),
        "matching": classifier.model.head.matching_name,
        "preprocessing": {
            "num_frames": how.num_frames,
            "frame_policy": how.frame_policy,
            "short_side": how.transform.short_side,
            "image_size": how.image_size,
            "pixels": "uint8 RGB 0..255; mean and standard deviation are part of encode.onnx",
        },
        "labels": support.labels,
        "chunks": graphs.example_arrays(support)[1] if support.clips else [],
    }
    if support.clips:
        found = classifier.calibration_
        lowest = found.min_logit if math.isfinite(found.min_logit) else None
        return {
            **about,
            "temperature": found.temperature,
            "min_probability": found.min_probability,
            "min_logit": lowest,
        }
    fixed = classifier.temperature
    temperature = classifier.model.head.matching.temperature if fixed == "fit" else fixed
    if classifier.threshold == "fit":
        raise InputError("threshold 'fit' is fitted to the examples: give examples, or a number")
    return {**about, "temperature": temperature, "min_probability": classifier.threshold or 0.0, "min_logit": None}
