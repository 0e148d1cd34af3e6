"""Write the folder of an exported classifier, and check it before it gets its name."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from strm_lightning._version import __version__
from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.export import graphs
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
    progress: bool = False,
    on_step: Callable[[str], object] | None = None,
) -> Parity:
    """Export a classifier to ONNX, as a folder that works without torch and without this package.

    The folder contains ``encode.onnx`` (frames to encoded tensors), ``match.onnx`` (prepared examples and queries to
    logits), ``examples.npz``, ``model.json`` (preprocessing, labels, temperature, threshold) and ``predict.py``, which
    predicts with onnxruntime, numpy and PyAV. It is written to a temporary folder and renamed when `check_parity` finds
    the same predictions as PyTorch.

    Without examples, ``predict.py --examples`` encodes them; methods that compute something from all examples, such as
    ``kernel_ridge``, cannot be exported without.

    Args:
        classifier: the classifier, on the CPU.
        folder: the folder to write: absent or empty.
        check: videos that are not among the examples, to compare predictions on; if there are none, the examples are
            left out one by one.
        progress: show progress bars.
        on_step: called with the name of each step when it begins.

    Returns:
        What was compared, and the largest difference.

    Raises:
        MissingPackageError: a package of the extra ``export`` is not installed.
        InputError: the folder is not empty, the model cannot be converted, or predictions differ.
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
    with atomic_folder(folder) as part:
        with write_errors(folder):
            _write(classifier, part, progress, on_step or str)
        (on_step or str)("comparing with PyTorch")
        return check_parity(classifier, part, check, progress=progress)


def _write(classifier: FewShotClassifier, folder: Path, progress: bool, on_step: Callable[[str], object]) -> None:
    about = _about(classifier)
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
