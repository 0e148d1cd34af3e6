"""FewShotClassifier: a few clips of each action in, labels of other videos out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from strm_lightning.classifier import loading, storage
from strm_lightning.classifier.calibration import Calibration, Fitted, calibrate, check_options
from strm_lightning.classifier.clips import (
    Preprocessing,
    Video,
    Videos,
    in_a_row,
    is_one,
    read_clip,
    video_name,
    windows,
)
from strm_lightning.classifier.encoder import encode, encode_each
from strm_lightning.classifier.examples import add_examples, by_class, check_labels
from strm_lightning.classifier.explanation import Explanation, explain
from strm_lightning.classifier.habits import ScikitLearnHabits
from strm_lightning.classifier.predictions import UNKNOWN, Prediction, WindowPrediction
from strm_lightning.classifier.support import EncodedClip, SupportSet
from strm_lightning.data.frames import FramePolicy
from strm_lightning.data.videos import VideoError
from strm_lightning.errors import InputError
from strm_lightning.models.strm import STRM


class FewShotClassifier(ScikitLearnHabits):
    """Recognise actions from a few clips of each: clips are encoded once and matched, nothing is trained.

    Build it with `from_checkpoint`, `from_backbone` or `load`. The methods are those of a scikit-learn classifier:
    ``fit``, ``predict``, ``predict_proba``, ``classes_``, ``score``, ``get_params`` and ``set_params``.

    Args:
        model: the model that encodes and matches clips, with any matching method; it is put into evaluation mode.
        preprocessing: how a video becomes a clip.
        qc_weight: lambda, the weight of QC in the combined logits.
        temperature: divides the logits before the softmax; ``fit`` finds it by leaving support clips out in turn, where
            two classes or more have two or more, and else takes that of the matching method.
        threshold: probability below which a video is ``unknown``; None for never; ``fit`` finds a threshold on the
            logit instead, by leaving clips out with their class and without, where two classes or more have two or
            more.
        batch_size: clips encoded at once.
        jobs: videos read at once, each by a thread of its own.
        source: where the weights came from, as arguments of `from_checkpoint` or `from_backbone`; `save` notes it.

    Raises:
        ValueError: a temperature that is not positive, a threshold outside 0 .. 1, or a count below 1; `set_params`
            raises it too.
    """

    def __init__(
        self,
        model: STRM,
        preprocessing: Preprocessing,
        *,
        qc_weight: float = 0.1,
        temperature: Fitted = "fit",
        threshold: Fitted | None = None,
        batch_size: int = 4,
        jobs: int = 1,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.preprocessing, self.qc_weight = model.eval(), preprocessing, qc_weight
        self.temperature, self.threshold = temperature, threshold
        self.batch_size, self.jobs, self.source = batch_size, jobs, source
        self.support = SupportSet(model, qc_weight)
        self._calibration: tuple[Any, Calibration] | None = None
        self._check_params()

    def _check_params(self) -> None:
        check_options(self.temperature, self.threshold)
        for name, count in (("batch_size", self.batch_size), ("jobs", self.jobs)):
            if count < 1:
                raise InputError(f"{name} is {count}: give 1 or more")

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        image_size: int | None = None,
        short_side: int | None = None,
        frame_policy: FramePolicy | None = None,
        device: str | None = None,
        **options: Any,
    ) -> "FewShotClassifier":
        """A classifier on a checkpoint of `STRMModule`.

        Args:
            path: the checkpoint.
            image_size: side of a clip in pixels; None for what the model was trained with, here and below.
            short_side: short side of a frame before the crop, in pixels.
            frame_policy: which frames of a video.
            device: such as ``cuda:0``; None for the GPU where there is one.
            **options: of the classifier.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no checkpoint of `STRMModule`.
        """
        place = loading.resolve_device(device)
        model, qc_weight, trained = loading.read_checkpoint(path)
        asked = {"image_size": image_size, "short_side": short_side, "frame_policy": frame_policy}
        given = {name: value for name, value in asked.items() if value is not None}
        how = Preprocessing(**{**trained, **given})
        source = {"path": str(Path(path).absolute()), **given}  # found again from any other folder
        return cls(model.to(place), how, source=source, **{"qc_weight": qc_weight, **options})

    @classmethod
    def from_backbone(
        cls,
        backbone: str = loading.DEFAULT_BACKBONE,
        *,
        weights: str | Path | None = None,
        patch_grid: int = 4,
        num_frames: int = 8,
        image_size: int = 224,
        matching: str = "patches",
        matching_options: Mapping[str, Any] | None = None,
        device: str | None = None,
        **options: Any,
    ) -> "FewShotClassifier":
        """A classifier on a pretrained backbone and a matching method without weights.

        Args:
            backbone: a timm model name.
            weights: a local file; None for the pretrained ones: of ``tf_efficientnet_lite0`` those that the extra
                ``weights`` installs, of others timm's, which are downloaded.
            patch_grid: rows and columns of the grid of patches.
            num_frames: frames of a clip.
            image_size: side of a clip in pixels.
            matching: name of the matching method.
            matching_options: its options.
            device: such as ``cuda:0``; None for the GPU where there is one.
            **options: of the classifier.
        """
        spec = str(weights) if weights is not None else None
        chosen = {"matching": matching, "matching_options": dict(matching_options or {})}
        model = loading.untrained(backbone, weights=spec, patch_grid=patch_grid, num_frames=num_frames, **chosen)
        how = Preprocessing(num_frames=num_frames, image_size=image_size)
        absolute = str(Path(spec).absolute()) if spec is not None and Path(spec).is_file() else spec
        made = {"backbone": backbone, "weights": absolute, "patch_grid": patch_grid}
        source = {**made, "num_frames": num_frames, "image_size": image_size, **chosen}
        return cls(model.to(loading.resolve_device(device)), how, source=source, **options)

    # The support set ------------------------------------------------------------------------------------------------

    @property
    def classes_(self) -> np.ndarray:
        """The classes, ascending."""
        return np.array(self.support.labels)

    def fit(
        self,
        videos: Mapping[str, Videos] | Videos,
        labels: Sequence[str] | np.ndarray | None = None,
        *,
        progress: bool = False,
    ) -> "FewShotClassifier":
        """Take these clips, and no others, as the examples of their classes.

        A video that cannot be read is left out with a warning.

        Args:
            videos: videos by class, or in a row.
            labels: the class of each, where ``videos`` is a row.
            progress: show a bar.

        Raises:
            ValueError: fewer than two classes, a class without any readable clip, or a class named ``unknown``,
                which is the label of rejected videos.
        """
        grouped = by_class(videos, labels)
        check_labels(grouped)
        if len(grouped) < 2:
            raise InputError(f"examples of {len(grouped)} class{'' if grouped else 'es'}: give clips of 2 or more")
        support = SupportSet(self.model, self.qc_weight)
        add_examples(support, grouped, self._encoded, progress=progress)
        self.support, self._calibration = support, None
        return self

    def add(self, label: str, videos: Video | Videos) -> "FewShotClassifier":
        """Add clips to a class, which may be new; the clips that are there are not encoded again.

        Raises:
            ValueError: a new class without any readable clip, or one named ``unknown``.
        """
        if label not in self.support.clips:
            check_labels([label])
        add_examples(self.support, {label: in_a_row(videos)}, self._encoded)
        self._calibration = None
        return self

    def remove(self, label: str, video: str | Path | None = None) -> "FewShotClassifier":
        """Remove a class, or one video of it.

        Examples that were loaded from a file are known by file name only, so ``video`` may be the name or any path that
        ends in it.

        Raises:
            KeyError: there is no such class or video.
        """
        self.support.remove(label, None if video is None else str(video))
        self._calibration = None
        return self

    # Predictions ----------------------------------------------------------------------------------------------------

    def predict(self, videos: Video | Videos) -> Any:
        """The `Prediction` of one video; of a list of videos, the array of their labels, as scikit-learn has it."""
        found = self.predict_many(in_a_row(videos))
        return found[0] if is_one(videos) else np.array([prediction.label for prediction in found])

    def predict_many(self, videos: Videos, *, progress: bool = False) -> list[Prediction]:
        """The predictions of videos, in their order.

        Raises:
            VideoError: one of them cannot be read; `predict_each` goes on.
        """
        found = []
        for prediction in tqdm(self.predict_each(videos), total=len(videos), unit="video", disable=not progress):
            if isinstance(prediction, VideoError):
                raise prediction
            found.append(prediction)
        return found

    def predict_each(self, videos: Iterable[Video]) -> Iterator[Prediction | VideoError]:
        """Yield the prediction of each video as soon as it is there, or what is wrong with the video."""
        self._check_fitted()
        for clip in self._encoded(videos):
            yield clip if isinstance(clip, VideoError) else self._predict_clip(clip)

    def predict_proba(self, videos: Videos) -> np.ndarray:
        """Probabilities ``[len(videos), classes]``, columns in the order of `classes_`."""
        labels = self.support.labels
        return np.array([[p.probabilities[label] for label in labels] for p in self.predict_many(videos)])

    def score(self, videos: Videos, labels: Sequence[str] | np.ndarray) -> float:
        """Accuracy on labelled videos, a fraction."""
        return float(np.mean(self.predict(in_a_row(videos)) == np.array(labels)))

    def predict_windows(
        self, video: Video, *, seconds: float = 3.0, stride: float | None = None, fps: float = 25.0
    ) -> Iterator[WindowPrediction]:
        """Yield what is seen in each window of a long video, in constant memory.

        Args:
            video: a file or an array.
            seconds: length of a window: about that of the examples.
            stride: from the start of a window to the start of the next, in seconds; None for half a window.
            fps: frames a second of an array; a file knows its own times.
        """
        self._check_fitted()
        half = seconds / 2 if stride is None else stride
        for start, end, clip in windows(video, self.preprocessing, seconds=seconds, stride=half, fps=fps):
            encoded = encode([(video_name(video), clip)], self.model)
            yield WindowPrediction(start, end, self._predict_clip(encoded[0]))

    def explain(self, video: Video) -> Explanation:
        """Why a video is given its label: its matches with the examples, and where the model looked.

        Raises:
            VideoError: the video cannot be read.
        """
        self._check_fitted()
        return self.explain_encoded(*self.encode_one(video))

    def encode_one(self, video: Video) -> tuple[EncodedClip, UInt8[Tensor, "L 3 S S"]]:
        """Encode one video; return it with the pixels of its clip, as `explain_encoded` takes them.

        Raises:
            VideoError: the video cannot be read.
        """
        pixels = read_clip(video, self.preprocessing)
        return encode([(video_name(video), pixels)], self.model)[0], pixels

    def explain_encoded(self, clip: EncodedClip, pixels: UInt8[Tensor, "L 3 S S"]) -> Explanation:
        """`explain` for a clip that is already encoded."""
        return explain(self.support, clip, pixels, self._predict_clip(clip))

    @property
    def calibration_(self) -> Calibration:
        """Temperature and threshold in use, as given or fitted."""
        asked = (self.temperature, self.threshold)
        if self._calibration is None or self._calibration[0] != asked:
            self._calibration = asked, calibrate(self.support, *asked)
        return self._calibration[1]

    def _predict_clip(self, clip: EncodedClip) -> Prediction:
        query = {name: tensor[None] for name, tensor in clip.features.items()}
        logits = self.support.match(query).combined(self.qc_weight)[0].double()
        use = self.calibration_
        shares = torch.softmax(logits / use.temperature, 0).tolist()
        ranked = sorted(zip(self.support.labels, shares, strict=True), key=lambda pair: -pair[1])
        label, best = ranked[0]
        known = best >= use.min_probability and float(logits.max()) >= use.min_logit
        return Prediction(label if known else UNKNOWN, best, dict(ranked), clip.name, rejected=not known)

    def _encoded(self, videos: Iterable[Video]) -> Iterator[EncodedClip | VideoError]:
        return encode_each(videos, self.model, self.preprocessing, batch_size=self.batch_size, jobs=self.jobs)

    def _check_fitted(self) -> None:
        if len(self.support.clips) < 2:
            raise InputError(f"examples of {len(self.support.clips)} classes: call fit or add for 2 or more first")

    # Storage --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, thumbnails: bool = True) -> None:
        """Write the encoded examples to one .safetensors file, for `load`.

        Args:
            path: the file.
            thumbnails: keep small pictures of the clips, which `explain` draws; without, no pixel is in the file.
        """
        calibration = {"temperature": self.temperature, "threshold": self.threshold}
        storage.save(Path(path), self.support, self.preprocessing, self.source, calibration, thumbnails=thumbnails)

    @storage.on_class_or_instance
    def load(self, path: str | Path, **options: Any) -> "FewShotClassifier":
        """Read the examples of a file that `save` wrote; their videos are not needed.

        Called on a classifier, it replaces the examples. Called on the class, as ``FewShotClassifier.load(path)``, it
        first opens the checkpoint or backbone that the file names.

        Args:
            path: the file.
            **options: of the classifier, such as ``threshold``; called on the class, also ``device``. They take
                precedence over what the file says, which takes precedence over what the classifier had.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, was made with other weights or another preprocessing, or is something else.
        """
        stored = storage.load(Path(path))
        made = self._from_source(stored, options) if isinstance(self, type) else self
        support = stored.support_for(made.model, made.qc_weight, made.preprocessing)
        own = {name: value for name, value in options.items() if name != "device" or not isinstance(self, type)}
        made.set_params(**{**stored.calibration, **own})
        made.support, made._calibration = support, None
        return made

    @classmethod
    def _from_source(cls, stored: storage.Stored, options: dict[str, Any]) -> "FewShotClassifier":
        source = stored.about["source"]
        if source is None:
            raise InputError(f"{stored.path}: names no checkpoint; make a classifier and call its load")
        return (cls.from_checkpoint if "path" in source else cls.from_backbone)(**source, **options)
