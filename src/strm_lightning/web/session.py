"""Examples and predictions of one open page."""

import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from strm_lightning.classifier.calibration import Fitted
from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.examples import check_labels
from strm_lightning.classifier.explain.explanation import Explanation
from strm_lightning.classifier.predictions import Prediction
from strm_lightning.classifier.support import EncodedClip
from strm_lightning.classifier.videos import Video, duration_of
from strm_lightning.errors import InputError, InputKeyError
from strm_lightning.web.export_process import ExportProcess

_LONGEST_NAME = 60  # characters
Examples = Mapping[str, Iterable[EncodedClip]]


class Session:
    """Examples of one open page. Its methods can be called by several threads.

    Args:
        plain: classifier with the model and the options; its examples are not used.
        lock: shared by all sessions, so that one clip is encoded or matched at a time.

    Attributes:
        classifier: classifier with the examples.
        labels: the classes in the order of the page, also those without examples.
        greets: whether the page still shows the built-in examples.
    """

    def __init__(self, plain: FewShotClassifier, lock: AbstractContextManager[Any]) -> None:
        self._plain, self._lock = plain, lock
        self.classifier = empty_copy(plain)
        self.labels: list[str] = []
        self.greets = False
        self._offered: dict[str, Path] = {}  # files to download
        self._export: ExportProcess | None = None
        self._closed = False

    @property
    def nbytes(self) -> int:
        """Memory of the examples in bytes."""
        clips = [clip for group in list(self.classifier.support.clips.values()) for clip in list(group)]
        return sum(t.numel() * t.element_size() for clip in clips for t in (*clip.features.values(), clip.thumbnail))

    @property
    def num_classes(self) -> int:
        """Number of classes that have examples."""
        return len(self.classifier.support.clips)

    def clips(self, label: str) -> list[EncodedClip]:
        """Return the examples of a class, in the order in which they were added."""
        return list(self.classifier.support.clips.get(label, []))

    # Classes and examples -------------------------------------------------------------------------------------------

    def replace_all(self, examples: Examples, *, greets: bool = False) -> None:
        """Replace all classes and examples."""
        with self._lock:
            self.classifier = empty_copy(self._plain)
            self.labels, self.greets = [*examples], greets
            for label, clips in examples.items():
                # copies, since a support set replaces the features of its clips by views of its own tensors
                found = _with_unique_names([replace(clip) for clip in clips])
                if found:
                    self.classifier.add_encoded(label, found)

    def add_class(self) -> str:
        """Add a class without examples and return its name."""
        with self._lock:
            number = next(n for n in range(1, len(self.labels) + 2) if f"action {n}" not in self.labels)
            self.labels.append(f"action {number}")
            return self.labels[-1]

    def rename_class(self, label: str, name: str) -> None:
        """Rename a class.

        Raises:
            InputKeyError: the class does not exist.
            InputError: the name is empty, too long, in use, or ``unknown``.
        """
        with self._lock:
            name = " ".join(name.split())
            place = self._place(label)
            if name == label:
                return
            if not name or len(name) > _LONGEST_NAME:
                raise InputError(f"give the action a name of 1 to {_LONGEST_NAME} characters")
            if name in self.labels:
                raise InputError(f"two actions are named {name!r}: give another name")
            check_labels([name])
            if label in self.classifier.support.clips:
                self.classifier.rename(label, name)
            self.labels[place] = name

    def remove_class(self, label: str) -> None:
        """Remove a class and its examples.

        Raises:
            InputKeyError: the class does not exist.
        """
        with self._lock:
            del self.labels[self._place(label)]
            if label in self.classifier.support.clips:
                self.classifier.remove(label)

    def add_example(self, label: str, video: Video, name: str, seconds: float | None = None) -> EncodedClip:
        """Encode a video and add it to a class.

        Args:
            label: the class.
            video: a file, or an array of frames.
            name: name of the example; a number is appended if the class has an example of this name.
            seconds: duration of the video; None for that of a file.

        Raises:
            InputKeyError: the class does not exist.
            VideoError: the video cannot be read.
        """
        self._place(label)
        with self._lock:
            clip, _ = self.classifier.encode_one(video)
            self._place(label)  # it may have been removed in the meantime
            clip.duration = duration_of(video) if seconds is None else seconds
            clip.name = _unique(name, {other.name for other in self.clips(label)})
            self.classifier.add_encoded(label, [clip])
            return clip

    def remove_example(self, label: str, name: str) -> None:
        """Remove an example.

        Raises:
            InputKeyError: the class or the example does not exist.
        """
        with self._lock:
            self.classifier.remove(label, name)

    def _place(self, label: str) -> int:
        if label not in self.labels:
            raise InputKeyError(f"there is no action {label!r}")
        return self.labels.index(label)

    # Predictions ----------------------------------------------------------------------------------------------------

    def set_threshold(self, threshold: Fitted | None) -> None:
        """Set the probability below which a video is ``unknown``; ``fit`` fits a threshold to the examples.

        Raises:
            InputError: the threshold is outside 0 .. 1, or there are too few examples to fit it.
        """
        with self._lock:
            before = self.classifier.threshold
            self.classifier.set_params(threshold=threshold)
            if threshold == "fit":
                try:
                    _ = self.classifier.calibration_
                except InputError:
                    self.classifier.set_params(threshold=before)
                    raise

    def predict(self, frames: UInt8[np.ndarray, "L H W 3"]) -> Prediction:
        """Predict the class of a clip.

        Raises:
            InputError: there are fewer than two classes with examples.
        """
        with self._lock:
            if self.num_classes < 2:
                raise InputError("give examples of at least two actions first")
            prediction: Prediction = self.classifier.predict(frames)
            return prediction

    def explain(self, video: Video, name: str) -> Explanation:
        """Predict the class of a video and explain the prediction.

        Args:
            video: a file, or an array of frames.
            name: name of the video in the explanation.

        Raises:
            InputError: there are fewer than two classes with examples.
            VideoError: the video cannot be read.
        """
        with self._lock:
            if self.num_classes < 2:
                raise InputError("give examples of at least two actions first")
            clip, pixels = self.classifier.encode_one(video)
            return self.classifier.explain_encoded(replace(clip, name=name), pixels)

    def snapshot(self) -> FewShotClassifier:
        """Return a classifier with the present examples, for work that lasts long."""
        with self._lock:
            copy = empty_copy(self.classifier)
            for label in self.classifier.support.labels:
                copy.add_encoded(label, [replace(clip) for clip in self.clips(label)])
            return copy

    # Files ----------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Save the examples, as `FewShotClassifier.save`; delete the file that was saved before.

        Args:
            path: a file in a folder of its own.

        Raises:
            InputError: there are no examples.
        """
        with self._lock:
            if not self.num_classes:
                raise InputError("there are no examples yet: record or upload some first")
            self._offer("examples", path)
            self.classifier.save(path)

    def export(self, path: Path) -> str:
        """Export the classifier to a ZIP file; delete the file that was exported before.

        Args:
            path: a file in a folder of its own.

        Returns:
            What was compared with PyTorch.

        Raises:
            InputError: there are fewer than two classes with examples, the classifier cannot be exported, or the export
                was stopped.
        """
        with self._lock:
            if self.num_classes < 2:
                raise InputError("give examples of at least two actions first")
            self._offer("export", path)
            path.parent.mkdir(parents=True)
            running = self._export = ExportProcess(self.snapshot(), path)
        try:
            return running.wait()
        except InputError:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise
        finally:
            self._export = None
            if self._closed:  # in the meantime
                self.close()

    @property
    def export_step(self) -> str:
        """Name of the step of the export, or an empty text if none runs."""
        running = self._export
        return "" if running is None else running.step

    def stop_export(self) -> None:
        """Stop the export, if one runs."""
        if (running := self._export) is not None:
            running.stop()

    def close(self) -> None:
        """Stop the export, and delete the files to download."""
        self._closed = True
        self.stop_export()
        for path in list(self._offered.values()):
            shutil.rmtree(path.parent, ignore_errors=True)

    def _offer(self, kind: str, path: Path) -> None:
        """Remember a file to download, and delete the one of the same kind before it."""
        if kind in self._offered:
            shutil.rmtree(self._offered[kind].parent, ignore_errors=True)
        self._offered[kind] = path

    def load(self, path: Path) -> None:
        """Replace the examples by those of a file that `save` wrote.

        Raises:
            InputError: the file cannot be read, or is of another model.
        """
        with self._lock:
            loaded = empty_copy(self._plain).load(path)
            self.replace_all(loaded.support.clips)
            self.classifier.set_params(threshold=loaded.threshold, temperature=loaded.temperature)


def empty_copy(classifier: FewShotClassifier) -> FewShotClassifier:
    """Return a classifier with the same model and options and without examples."""
    return FewShotClassifier(**classifier.get_params())


def _with_unique_names(clips: list[EncodedClip]) -> list[EncodedClip]:
    names: set[str] = set()
    for clip in clips:
        clip.name = _unique(clip.name, names)
        names.add(clip.name)
    return clips


def _unique(name: str, others: set[str]) -> str:
    """Append a number to a name that is in use: ``wave.mp4 (2)``."""
    if name not in others:
        return name
    base = re.sub(r" \(\d+\)$", "", name)
    return next(f"{base} ({n})" for n in range(2, len(others) + 3) if f"{base} ({n})" not in others)
