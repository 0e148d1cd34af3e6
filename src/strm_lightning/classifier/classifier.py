"""FewShotClassifier: predict the action in a video from a few example clips of each action."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from strm_lightning.classifier import events, live, load_model, storage
from strm_lightning.classifier.calibration import Calibration, Fitted, calibrate, check_options
from strm_lightning.classifier.check import Check, check
from strm_lightning.classifier.clips import ClipConfig, as_list, is_one, read_clip, regular_frames, windows
from strm_lightning.classifier.encoder import encode, encode_each
from strm_lightning.classifier.examples import add_examples, by_class, check_labels
from strm_lightning.classifier.explain.explanation import Explanation, explain
from strm_lightning.classifier.live import LiveEvent, LiveSource
from strm_lightning.classifier.predictions import UNKNOWN, Prediction, WindowPrediction
from strm_lightning.classifier.progress import over_video
from strm_lightning.classifier.selection import Selection, select
from strm_lightning.classifier.sklearn_mixin import SklearnMixin
from strm_lightning.classifier.support import EncodedClip, SupportSet
from strm_lightning.classifier.videos import Video, Videos, video_name
from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.sampling import FramePolicy
from strm_lightning.errors import InputError
from strm_lightning.messages import check_positive
from strm_lightning.models.strm import STRM


class FewShotClassifier(SklearnMixin):
    """Few-shot action classifier: matches videos with encoded example clips, without training.

    Build it with `from_checkpoint`, `from_backbone` or `load`. It has the interface of a scikit-learn classifier:
    ``fit``, ``predict``, ``predict_proba``, ``classes_``, ``score``, ``get_params`` and ``set_params``.

    Args:
        model: the model that encodes and matches clips, with any matching method; it is put into evaluation mode.
        preprocessing: how a video becomes a clip.
        qc_weight: lambda, the weight of QC in the combined logits.
        temperature: divides the logits before the softmax. ``fit`` fits it by leave-one-out over the support clips if
            at least two classes have two clips; otherwise the temperature of the matching method is used.
        threshold: probability below which a video is ``unknown``; None never rejects. ``fit`` fits a threshold on the
            logit instead, by leave-one-out; at least two classes must have two clips.
        batch_size: number of clips in a forward pass.
        jobs: number of threads that read videos.
        source: source of the weights, as arguments of `from_checkpoint` or `from_backbone`; stored by `save`.

    Raises:
        InputError: the temperature is not positive, the threshold is outside 0 .. 1, or a count is below 1. Also
            raised by `set_params`.
    """

    def __init__(
        self,
        model: STRM,
        preprocessing: ClipConfig,
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
        self._changed()
        self._check_params()

    def _check_params(self) -> None:
        check_options(self.temperature, self.threshold)
        check_positive(batch_size=self.batch_size, jobs=self.jobs)

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
        """Build a classifier from a checkpoint of `STRMModule`.

        Args:
            path: path of the checkpoint.
            image_size: height and width of a clip in pixels; None uses the value of the training.
            short_side: short side of a frame before the crop, in pixels; None as above.
            frame_policy: which frames of a video are used; None as above.
            device: device such as ``cuda:0``; None for the GPU if one is available.
            **options: arguments of the constructor.

        Raises:
            MissingFileError: the file does not exist.
            InputError: the file is not a checkpoint of `STRMModule`.
        """
        target = load_model.resolve_device(device)
        model, qc_weight, trained = load_model.read_checkpoint(path)
        asked = {"image_size": image_size, "short_side": short_side, "frame_policy": frame_policy}
        given = {name: value for name, value in asked.items() if value is not None}
        preprocessing = ClipConfig(**{**trained, **given})
        source = {"path": str(Path(path).absolute()), **given}  # absolute: also valid from another working directory
        return cls(model.to(target), preprocessing, source=source, **{"qc_weight": qc_weight, **options})

    @classmethod
    def from_backbone(
        cls,
        backbone: str = load_model.DEFAULT_BACKBONE,
        *,
        weights: str | Path | None = None,
        patch_grid: int = 4,
        backbone_stage: int | Sequence[int] | None = None,
        num_frames: int | None = None,
        num_segments: int | None = None,
        frame_policy: FramePolicy | None = None,
        image_size: int | None = None,
        matching: str = load_model.DEFAULT_MATCHING,
        matching_options: Mapping[str, Any] | None = None,
        device: str | None = None,
        **options: Any,
    ) -> "FewShotClassifier":
        """Build a classifier from a pretrained backbone and a matching method without trainable weights.

        Args:
            backbone: a timm model name, ``torchvision/`` and a video model, or a name given to `register_backbone`.
            weights: a local weights file. None for pretrained weights: those of ``tf_efficientnet_lite0`` are in the
                extra ``weights``, those of other models are downloaded by timm.
            patch_grid: rows and columns P of the patch grid.
            backbone_stage: stage of a timm model whose map is used, or several; None for the last two with the default
                backbone and matching, or for the output of the network.
            num_frames: frames L of a clip; None for 8, or for 32 with a video model of torchvision.
            num_segments: segments that a video backbone encodes separately; None for 1, or for 2 as above.
            frame_policy: which frames of a video are used; None for ``segments``, or for ``dense`` as above.
            image_size: height and width of a clip in pixels; None for 224, or for that of the pretraining as above.
            matching: name of the matching method. ``auto`` is ``lag_energy`` with one example per class and
                ``kernel_ridge`` with several; `selection_` describes it.
            matching_options: options of the matching method, such as ``{"mirror": True}`` for ``auto`` if an action and
                its mirror image are the same action.
            device: device such as ``cuda:0``; None for the GPU if one is available.
            **options: arguments of the constructor.

        Raises:
            InputError: the backbone or the method does not exist, the method has trainable weights, or the weights
                cannot be loaded.
            MissingFileError: the weights file does not exist.
        """
        spec = str(weights) if weights is not None else None
        chosen = {"matching": matching, "matching_options": dict(matching_options or {})}
        given = {"num_frames": num_frames, "num_segments": num_segments, "frame_policy": frame_policy}
        given = {name: value for name, value in {**given, "image_size": image_size}.items() if value is not None}
        stages = load_model.default_stages(backbone, matching) if backbone_stage is None else backbone_stage
        stages = stages if isinstance(stages, int) else list(stages)
        preprocessing = ClipConfig(**{**load_model.usual_clip(backbone), **given})
        model = load_model.untrained(
            backbone,
            weights=spec,
            patch_grid=patch_grid,
            backbone_stage=stages,
            num_frames=preprocessing.num_frames,
            num_segments=preprocessing.num_segments,
            **chosen,
        )
        model.backbone.check_size(preprocessing.image_size)
        absolute = str(Path(spec).absolute()) if spec is not None and Path(spec).is_file() else spec
        network = {"backbone": backbone, "weights": absolute, "patch_grid": patch_grid, "backbone_stage": stages}
        sizes = {"num_frames": preprocessing.num_frames, "image_size": preprocessing.image_size}
        source = {**network, **given, **sizes, **chosen}
        return cls(model.to(load_model.resolve_device(device)), preprocessing, source=source, **options)

    # The support set ------------------------------------------------------------------------------------------------

    @property
    def classes_(self) -> np.ndarray:
        """The classes in ascending order."""
        return np.array(self.support.labels)

    def fit(
        self,
        videos: Mapping[str, Videos] | Videos,
        labels: Sequence[str] | np.ndarray | None = None,
        *,
        progress: bool = False,
    ) -> "FewShotClassifier":
        """Encode example clips and replace the support set with them.

        Videos that cannot be read are left out with a `DataWarning`.

        Args:
            videos: videos of each class, or a sequence of videos.
            labels: class of each video, if ``videos`` is a sequence.
            progress: show a progress bar.

        Raises:
            InputError: there are fewer than two classes, a class has no readable clip, or a class is named ``unknown``,
                which is the label of rejected videos.
            InputTypeError: the value of a class is one video instead of a list.
        """
        grouped = by_class(videos, labels)
        check_labels(grouped)
        if len(grouped) < 2:
            raise InputError(f"examples of {len(grouped)} class{'' if grouped else 'es'}: give clips of 2 or more")
        support = SupportSet(self.model, self.qc_weight)
        add_examples(support, grouped, self._encoded, progress=progress)
        self.support = support
        self._changed()
        return self

    def add(self, label: str, videos: Video | Videos) -> "FewShotClassifier":
        """Add clips to a new or existing class; existing clips are not encoded again.

        Raises:
            InputError: a new class has no readable clip, or is named ``unknown``.
        """
        if label not in self.support.clips:
            check_labels([label])
        add_examples(self.support, {label: as_list(videos)}, self._encoded)
        self._changed()
        return self

    def remove(self, label: str, video: str | Path | None = None) -> "FewShotClassifier":
        """Remove a class, or one video of it.

        An examples file contains only file names, so ``video`` may be any path that ends in the stored name.

        Raises:
            InputKeyError: the class or the video does not exist.
        """
        self.support.remove(label, None if video is None else str(video))
        self._changed()
        return self

    def add_encoded(self, label: str, clips: Sequence[EncodedClip]) -> "FewShotClassifier":
        """Add clips that `encode_one` returned to a new or existing class.

        Raises:
            InputError: a new class is named ``unknown``.
        """
        if label not in self.support.clips:
            check_labels([label])
        self.support.add(label, clips)
        self._changed()
        return self

    def rename(self, label: str, name: str) -> "FewShotClassifier":
        """Rename a class; if a class of the new name exists, they are merged.

        Raises:
            InputKeyError: the class does not exist.
            InputError: the new name is ``unknown``.
        """
        check_labels([name])
        self.support.rename(label, name)
        self._changed()
        return self

    def _changed(self) -> None:
        """Discard what was computed from the support set."""
        self._calibration: tuple[Any, Calibration] | None = None
        self._selection: Selection | None = None

    # Predictions ----------------------------------------------------------------------------------------------------

    def predict(self, videos: Video | Videos) -> Any:
        """Return the `Prediction` of one video, or the array of labels of several videos, as in scikit-learn."""
        found = self.predict_many(as_list(videos))
        return found[0] if is_one(videos) else np.array([prediction.label for prediction in found])

    def predict_many(self, videos: Videos, *, progress: bool = False) -> list[Prediction]:
        """Return the predictions of videos in order.

        Raises:
            VideoError: a video cannot be read; `predict_each` continues with the next one instead.
        """
        found = []
        for prediction in tqdm(self.predict_each(videos), total=len(videos), unit="video", disable=not progress):
            if isinstance(prediction, VideoError):
                raise prediction
            found.append(prediction)
        return found

    def predict_each(self, videos: Iterable[Video]) -> Iterator[Prediction | VideoError]:
        """Yield the prediction of each video, or the `VideoError` of a video that cannot be read."""
        self._check_fitted()
        for clip in self._encoded(videos):
            yield clip if isinstance(clip, VideoError) else self.predict_encoded(clip)

    def predict_encoded(self, clip: EncodedClip) -> Prediction:
        """Return the prediction of a clip that `encode_one` returned.

        Raises:
            InputError: there are fewer than two classes.
        """
        self._check_fitted()
        query = {name: tensor[None] for name, tensor in clip.features.items()}
        logits = self.support.match(query).combined(self.qc_weight)[0].double()
        calibration = self.calibration_
        probabilities = torch.softmax(logits / calibration.temperature, 0).tolist()
        ranked = sorted(zip(self.support.labels, probabilities, strict=True), key=lambda pair: -pair[1])
        label, best = ranked[0]
        known = best >= calibration.min_probability and float(logits.max()) >= calibration.min_logit
        return Prediction(label if known else UNKNOWN, best, dict(ranked), clip.name, rejected=not known)

    def predict_proba(self, videos: Videos) -> np.ndarray:
        """Return probabilities ``[len(videos), N]``; columns are in the order of `classes_`."""
        labels = self.support.labels
        return np.array([[p.probabilities[label] for label in labels] for p in self.predict_many(videos)])

    def score(self, videos: Videos, labels: Sequence[str] | np.ndarray) -> float:
        """Return the accuracy on labelled videos as a fraction."""
        return float(np.mean(self.predict(as_list(videos)) == np.array(labels)))

    def predict_windows(
        self,
        video: Video,
        *,
        seconds: float = 3.0,
        stride: float | None = None,
        fps: float = 25.0,
        progress: bool = False,
    ) -> Iterator[WindowPrediction]:
        """Yield the predictions of a sliding window over a long video, in constant memory.

        Args:
            video: a file or an array.
            seconds: length of a window; should be about the length of the examples.
            stride: seconds between the starts of two windows; None for half a window.
            fps: frames per second of an array; the times of a file are its time stamps.
            progress: show a progress bar.

        Raises:
            InputError: a length is not positive, or there are fewer than two classes.
            VideoError: the video cannot be read.
        """
        self._check_fitted()
        step = seconds / 2 if stride is None else stride
        clips = windows(video, self.preprocessing, seconds=seconds, stride=step, fps=fps)
        for start, end, clip in over_video(clips, lambda window: window[1], video, fps) if progress else clips:
            encoded = encode([(video_name(video), clip)], self.model)
            yield WindowPrediction(start, end, self.predict_encoded(encoded[0]))

    def predict_events(
        self,
        video: Video,
        *,
        length: float | None = None,
        rate: float = 8.0,
        fps: float = 25.0,
        progress: bool = False,
    ) -> Iterator[WindowPrediction]:
        """Yield the events of a long video: intervals that show an action, with its label; see `find_events`.

        The lengths of windows follow the durations of the examples. Between events nothing is returned. The
        probabilities compare the classes only.

        Args:
            video: a file or an array.
            length: duration of an action in seconds; None for the durations of the examples.
            rate: frames per second that are encoded, each once.
            fps: frames per second of an array; the times of a file are its time stamps.
            progress: show a progress bar.

        Raises:
            InputError: a number is not positive, the examples have no durations and ``length`` is None, or there are
                fewer than two classes.
            VideoError: the video cannot be read.
        """
        self._check_fitted()
        check_positive(fps=fps)
        plan = events.plan_windows(self.support, rate, length)
        frames = regular_frames(video, self.preprocessing, rate=rate, fps=fps)
        frames = over_video(frames, lambda frame: frame[1] / rate, video, fps) if progress else frames
        yield from events.find_events(frames, self.support, self.preprocessing, plan, video_name(video))

    def live(
        self,
        source: str | int | Path | LiveSource,
        *,
        length: float | None = None,
        rate: float = 8.0,
        delay: float = live.DEFAULT_DELAY,
    ) -> Generator[LiveEvent, None, None]:
        """Yield the events of a camera or stream as they happen, until it ends; see `live.watch`.

        Args:
            source: number of a camera, a file (played at its own pace), an address that FFmpeg opens, or a
                `LiveSource`, which can be checked earlier.
            length: duration of an action in seconds; None for the durations of the examples.
            rate: largest number of frames per second that are encoded.
            delay: seconds after its end at which an event of the best segmentation is final.

        Raises:
            InputError: as `predict_events`, or the delay is negative.
            VideoError: the source cannot be opened or read.
        """
        self._check_fitted()
        plan = events.plan_windows(self.support, rate, length)
        yield from live.watch(source, self.support, self.preprocessing, plan, delay)

    def explain(self, video: Video) -> Explanation:
        """Explain the prediction of a video by its matches with the examples and the weights of its patches.

        Raises:
            VideoError: the video cannot be read.
        """
        self._check_fitted()
        return self.explain_encoded(*self.encode_one(video))

    def encode_one(self, video: Video) -> tuple[EncodedClip, UInt8[Tensor, "L 3 S S"]]:
        """Encode one video; return the encoded clip, for `predict_encoded`, and its pixels, for `explain_encoded`.

        Raises:
            VideoError: the video cannot be read.
        """
        pixels = read_clip(video, self.preprocessing)
        return encode([(video_name(video), pixels)], self.model)[0], pixels

    def explain_encoded(self, clip: EncodedClip, pixels: UInt8[Tensor, "L 3 S S"]) -> Explanation:
        """`explain` for an encoded clip."""
        return explain(self.support, clip, pixels, self.predict_encoded(clip))

    @property
    def selection_(self) -> Selection:
        """The matching in use, the weights of its kernels, and its accuracy on left-out example clips."""
        self._check_fitted()
        if self._selection is None:
            self._selection = select(self.support)
        return self._selection

    def check(self) -> Check:
        """Cross-validate the examples: expected accuracy, confusions, clips that look mislabelled or duplicated.

        No video is read again.

        Raises:
            InputError: there are fewer than two classes.
        """
        self._check_fitted()
        return check(self.support, self.calibration_)

    @property
    def calibration_(self) -> Calibration:
        """Temperature and threshold in use, fixed or fitted."""
        options = (self.temperature, self.threshold)
        if self._calibration is None or self._calibration[0] != options:
            self._calibration = options, calibrate(self.support, *options)
        return self._calibration[1]

    def _encoded(self, videos: Iterable[Video]) -> Iterator[EncodedClip | VideoError]:
        return encode_each(videos, self.model, self.preprocessing, batch_size=self.batch_size, jobs=self.jobs)

    def _check_fitted(self) -> None:
        if len(self.support.clips) < 2:
            raise InputError(f"examples of {len(self.support.clips)} classes: call fit or add for 2 or more first")

    # Storage --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, thumbnails: bool = True) -> None:
        """Save the encoded examples to a .safetensors file.

        Args:
            path: path of the file.
            thumbnails: save small frames of the clips, which the picture of `explain` shows; otherwise the file
                contains no pixels.

        Raises:
            WriteError: the file cannot be written.
        """
        calibration = {"temperature": self.temperature, "threshold": self.threshold}
        selection = self.selection_.to_dict() if len(self.support.clips) > 1 else None
        about = {**calibration, "selection": selection}
        storage.save(Path(path), self.support, self.preprocessing, self.source, about, thumbnails=thumbnails)

    @storage.on_class_or_instance
    def load(self, path: str | Path, **options: Any) -> "FewShotClassifier":
        """Load examples that `save` wrote; their videos are not needed.

        On an instance, the examples are replaced. On the class, as ``FewShotClassifier.load(path)``, the checkpoint or
        backbone named in the file is loaded first.

        Args:
            path: path of the file.
            **options: arguments of the constructor, such as ``threshold``; on the class also arguments of
                `from_checkpoint` or `from_backbone`, such as ``device``, or ``weights`` if the weights were moved.
                They override the values in the file, which override those of the instance.

        Raises:
            MissingFileError: the file does not exist.
            InputError: the file is damaged, is not an examples file, or was made with other weights or another
                preprocessing.
        """
        stored = storage.load(Path(path))
        classifier = self._from_source(stored, options) if isinstance(self, type) else self
        support = stored.support_for(classifier.model, classifier.qc_weight, classifier.preprocessing)
        names = classifier.get_params() if isinstance(self, type) else options
        params = {name: value for name, value in options.items() if name in names}
        classifier.set_params(**{**stored.calibration, **params})
        classifier.support = support
        classifier._changed()
        classifier._selection = stored.selection
        return classifier

    @classmethod
    def _from_source(cls, stored: storage.Stored, options: dict[str, Any]) -> "FewShotClassifier":
        source = stored.about["source"]
        if source is None:
            raise InputError(f"{stored.path}: names no checkpoint; build a classifier and call its load")
        if "path" not in source:
            return cls.from_backbone(**{**source, **options})
        if given := [name for name in ("backbone", "weights", "matching", "matching_options") if name in options]:
            raise InputError(
                f"{stored.path}: {given[0]} is in its checkpoint {source['path']}; load it without {given[0]}"
            )
        return cls.from_checkpoint(**{**source, **options})
