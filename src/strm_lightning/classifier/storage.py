"""Save and load the encoded examples of a classifier as a .safetensors file."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from strm_lightning.classifier.calibration import Fitted, check_options
from strm_lightning.classifier.clips import ClipConfig, describe_tensor
from strm_lightning.classifier.examples import check_labels
from strm_lightning.classifier.selection import Selection
from strm_lightning.classifier.support import EncodedClip, SupportSet
from strm_lightning.data.sampling import FRAME_STRIDE, FramePolicy
from strm_lightning.episode import PooledMaps
from strm_lightning.errors import InputError, MissingFileError
from strm_lightning.fileio import atomic_path, sweep_parts, write_errors
from strm_lightning.messages import did_you_mean
from strm_lightning.models.matching.base import Encoded, matching_options, source_hash
from strm_lightning.models.strm import STRM
from strm_lightning.models.weights.state import hash_state

_FORMAT = "strm-lightning examples 2"
_FORMAT_0_1 = "strm-lightning examples 1"
_THUMBNAILS = "thumbnails"


def save(
    path: Path,
    support: SupportSet,
    config: ClipConfig,
    source: Mapping[str, Any] | None,
    about: Mapping[str, Any],
    *,
    thumbnails: bool,
) -> None:
    """Write a support set atomically.

    Paths of clips are shortened by `short_names`.

    Args:
        path: path of the file.
        support: the support set.
        config: preprocessing of the clips.
        source: arguments that build the model again.
        about: options ``temperature`` and ``threshold`` of the classifier, and its ``selection`` as plain values.
        thumbnails: save the small frames of the clips.

    Raises:
        WriteError: the file cannot be written.
    """
    clips = [(label, clip) for label in support.labels for clip in support.clips[label]]
    names = {label: short_names([clip.name for clip in support.clips[label]]) for label in support.labels}
    header = {
        "format": _FORMAT,
        "fingerprint": fingerprint(support.model),
        "preprocessing": asdict(config),
        "clips": [_record(label, names[label][clip.name], clip) for label, clip in clips],
        "source": source,
        **about,
    }
    keys = clips[0][1].features if clips else ()
    tensors = {key: torch.stack([clip.features[key] for _, clip in clips]).cpu() for key in keys}
    if clips and thumbnails:
        tensors[_THUMBNAILS] = torch.stack([clip.thumbnail for _, clip in clips])
    _write(path, tensors, header)


def _record(label: str, name: str, clip: EncodedClip) -> dict[str, Any]:
    """Describe a clip in the header; files of earlier versions have no ``duration``."""
    return {"label": label, "name": name, "digest": clip.digest, "duration": clip.duration}


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Map each path to its shortest unique ending: the file name, with parent folders where names repeat."""
    parts = {name: PurePath(name).parts for name in names}

    def short(name: str) -> str:
        path = parts[name]
        for length in range(1, len(path)):
            if sum(other[-length:] == path[-length:] for other in parts.values()) == 1:
                return str(PurePath(*path[-length:]))
        return name

    return {name: short(name) for name in parts}


@dataclass(frozen=True)
class Stored:
    """Content of an examples file, not yet checked against a model.

    Attributes:
        path: path of the file.
        about: metadata of the file.
        tensors: features and thumbnails of all clips, with the clips as leading axis.
    """

    path: Path
    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def calibration(self) -> Mapping[str, Fitted | None]:
        """The options ``temperature`` and ``threshold`` of the classifier that was saved."""
        return {name: self.about[name] for name in ("temperature", "threshold")}

    @property
    def selection(self) -> Selection | None:
        """How well the matching fits the examples; None if it was not stored."""
        stored = self.about.get("selection")
        return None if stored is None else Selection.from_dict(stored)

    @property
    def clips_by_class(self) -> dict[str, list[str]]:
        """Names of the clips of each class, classes in ascending order."""
        found: dict[str, list[str]] = {}
        for clip in self.about["clips"]:
            found.setdefault(clip["label"], []).append(clip["name"])
        return dict(sorted(found.items()))

    def without(self, removed: str) -> "Stored":
        """Remove a class, or a clip that is named ``CLASS/CLIP``.

        Raises:
            InputError: there is no such class or clip, or fewer than two classes are left.
        """
        clips = self.about["clips"]
        kept = [i for i, clip in enumerate(clips) if removed not in (clip["label"], f"{clip['label']}/{clip['name']}")]
        if len(kept) == len(clips):
            names = [*self.clips_by_class, *(f"{clip['label']}/{clip['name']}" for clip in clips)]
            raise InputError(
                f"{self.path}: no class or clip {removed!r}; {did_you_mean(removed, names)}classes are "
                f"{', '.join(self.clips_by_class)}"
            )
        if len({clips[i]["label"] for i in kept}) < 2:
            raise InputError(f"{self.path}: without {removed!r} fewer than two classes are left")
        rows = torch.tensor(kept)
        return self._changed([clips[i] for i in kept], {name: t[rows] for name, t in self.tensors.items()})

    def renamed(self, old: str, new: str) -> "Stored":
        """Rename a class; if a class of the new name exists, they are merged.

        Raises:
            InputError: there is no such class, the new name is ``unknown``, or only one class is left.
        """
        if old not in self.clips_by_class:
            hint = did_you_mean(old, self.clips_by_class)
            raise InputError(f"{self.path}: no class {old!r}; {hint}classes are {', '.join(self.clips_by_class)}")
        check_labels([new])
        clips = [{**clip, "label": new} if clip["label"] == old else clip for clip in self.about["clips"]]
        if len({clip["label"] for clip in clips}) < 2:
            raise InputError(f"{self.path}: {old!r} and {new!r} are its only classes; one class is too few")
        return self._changed(clips, self.tensors)

    def _changed(self, clips: list[dict[str, Any]], tensors: Mapping[str, Tensor]) -> "Stored":
        about = {name: value for name, value in self.about.items() if name != "selection"}  # of the old examples
        return replace(self, about={**about, "clips": clips}, tensors=tensors)

    def support_for(self, model: STRM, qc_weight: float, how: ClipConfig) -> SupportSet:
        """Build the support set for a model.

        Raises:
            InputError: the examples were encoded by another model or with another preprocessing, or their features do
                not have the names, shapes and types of the model.
        """
        of_0_1 = self.about["format"] == _FORMAT_0_1
        mine = fingerprint_of_0_1(model) if of_0_1 else fingerprint(model)
        theirs = self.about["fingerprint"]
        if mine != theirs:
            raise InputError(
                f"{self.path}: its examples were encoded with other weights or another matching (fingerprint "
                f"{theirs[:8]}, this model's is {mine[:8]}): load it with the model that made it "
                f"({self.about['source']}), or fit the clips again"
            )
        if asdict(how) != self.about["preprocessing"]:
            raise InputError(
                f"{self.path}: its clips were made with {self.about['preprocessing']}, this classifier's with "
                f"{asdict(how)}"
            )
        self._check_features(model, how)
        tensors = dict(self.tensors)
        blank = torch.zeros(len(self.about["clips"]), how.num_frames, 3, 1, 1, dtype=torch.uint8)
        thumbnails = tensors.pop(_THUMBNAILS, blank)
        support = SupportSet(model, qc_weight)
        for i, clip in enumerate(self.about["clips"]):
            features = {name: tensor[i].to(support.device) for name, tensor in tensors.items()}
            encoded = EncodedClip(clip["name"], clip["digest"], thumbnails[i], features, True, clip.get("duration"))
            support.add(clip["label"], [encoded])
        return support

    def _check_features(self, model: STRM, how: ClipConfig) -> None:
        found = {name: tensor for name, tensor in self.tensors.items() if name != _THUMBNAILS}
        if not self.about["clips"]:
            return
        expected = blank_clip(model)
        if set(found) != set(expected):
            raise InputError(
                f"examples {self.path}: damaged: features {_listed(found)}; this model has {_listed(expected)}"
            )
        for name, tensor in expected.items():
            if found[name].shape[1:] != tensor.shape or found[name].dtype != tensor.dtype:
                raise InputError(
                    f"examples {self.path}: damaged: {name!r} is {describe_tensor(found[name])}, this model has "
                    f"{describe_tensor(tensor.expand(len(found[name]), *tensor.shape))}"
                )
        thumbnails = self.tensors.get(_THUMBNAILS)
        if thumbnails is not None and thumbnails.shape[1] != how.num_frames:
            raise InputError(
                f"examples {self.path}: damaged: {_THUMBNAILS!r} has {thumbnails.shape[1]} frames per clip"
            )


def load(path: Path) -> Stored:
    """Read an examples file.

    Raises:
        MissingFileError: the file does not exist.
        InputError: the file is damaged, or is not an examples file.
    """
    if not path.is_file():
        raise MissingFileError(f"examples {path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        with safe_open(path, "pt") as file:
            about = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError, RecursionError) as cause:
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)
        raise InputError(f"examples {path}: cannot be read ({reason})") from cause
    if about.get("format") not in (_FORMAT, _FORMAT_0_1):
        raise InputError(f"examples {path}: not a file that FewShotClassifier.save wrote")
    if about["format"] == _FORMAT_0_1:
        if "relations" in tensors:
            tensors["qc.relations"] = tensors.pop("relations")
        if isinstance(about.get("source"), dict) and "path" not in about["source"]:
            about["source"]["matching"] = "patches"  # the only matching without a checkpoint in version 0.1
    if isinstance(about.get("preprocessing"), dict):
        about["preprocessing"] = _ADDED | about["preprocessing"]
    if error := _metadata_error(about) or _tensor_error(tensors, len(about["clips"])):
        raise InputError(f"examples {path}: damaged: {error}")
    return Stored(path, about, tensors)


def save_changed(stored: Stored, path: Path) -> None:
    """Write the content of an examples file atomically.

    Raises:
        WriteError: the file cannot be written.
    """
    _write(path, stored.tensors, stored.about)


def _write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    with write_errors(path, SafetensorError), atomic_path(path) as part:
        save_file(dict(tensors), part, {name: json.dumps(value) for name, value in header.items()})
    sweep_parts(path.parent)


@torch.inference_mode()
def blank_clip(model: STRM) -> Encoded:
    """Encode a clip of zeros, for the names, shapes and types of the tensors."""
    head, weight = model.head, next(model.parameters())
    frames = torch.zeros(head.num_frames, head.in_dim, dtype=weight.dtype, device=weight.device)
    grid = frames.unsqueeze(-2).repeat(1, head.patch_grid**2, 1)
    return head.encode(head.enrich_pooled(PooledMaps(grid=grid, mean=frames)))


def fingerprint(model: STRM) -> str:
    """32 hexadecimal digits that differ between models that encode clips or match them differently."""
    name, method = model.head.matching_name, model.head.matching
    # As JSON, since the options of a file's source come back from it: a tuple is then a list.
    options = json.dumps(matching_options(name) | method.options, sort_keys=True, default=str)
    settings = {
        **_settings(model),
        "tuple_sizes": model.head.tuple_sizes,
        "matching": name,
        "matching_options": options,
        "version": method.version,
        "source": source_hash(type(method)),
    }
    return hash_state(model.state_dict(), repr(sorted(settings.items())))[:32]


def fingerprint_of_0_1(model: STRM) -> str:
    """`fingerprint` of version 0.1, which had trained STRM models and the matching ``patches``."""
    settings, state = _settings(model), model.state_dict()
    if model.head.matching_name == "patches":
        settings = {name: settings[name] for name in ("backbone", "mean", "std", "patch_grid")}
    else:
        settings["tuple_sizes"] = model.head.tuple_sizes
        state = {f"model.{name}": tensor for name, tensor in state.items()}
    return hash_state(state, repr(sorted(settings.items())))[:32]


def _settings(model: STRM) -> dict[str, Any]:
    backbone, head = model.backbone, model.head
    names = ("num_frames", "patch_grid", "center_clip", "scale_clip")
    pixels = {"mean": backbone.mean.flatten().tolist(), "std": backbone.std.flatten().tolist()}
    segments: dict[str, Any] = {} if backbone.num_segments == 1 else {"num_segments": backbone.num_segments}
    if (stages := getattr(backbone, "stages", (-1,))) != (-1,):
        segments["stages"] = list(stages)
    return {"backbone": backbone.name, **pixels, **segments, **{name: getattr(head, name) for name in names}}


def _metadata_error(about: Mapping[str, Any]) -> str | None:
    """Describe the first error in the metadata of an examples file, or return None."""
    missing = [key for key in _KEYS if key not in about]
    if missing:
        return f"no {_listed(missing)} in its header"
    if not (isinstance(about["fingerprint"], str) and about["fingerprint"]):
        return f"fingerprint {_short(about['fingerprint'])}"
    if error := _clips_error(about["clips"]):
        return error
    config, source = about["preprocessing"], about["source"]
    if not (isinstance(config, dict) and set(config) == set(_CONFIG) and _are_valid(config, _CONFIG)):
        return f"preprocessing {_short(config)}"
    if source is not None:
        checks = _CHECKPOINT if isinstance(source, dict) and "path" in source else _BACKBONE
        if not (isinstance(source, dict) and _are_valid(source, checks)):
            return f"source {_short(source)}"
    try:
        Selection.from_dict(about["selection"]) if about.get("selection") is not None else None
    except (TypeError, ValueError, KeyError, AttributeError):
        return f"selection {_short(about['selection'])}"
    return _calibration_error(about)


def _clips_error(clips: Any) -> str | None:
    if not isinstance(clips, list):
        return f"clips {_short(clips)}: a list is expected"
    for number, clip in enumerate(clips):
        if not (isinstance(clip, dict) and all(isinstance(clip.get(key), str) for key in ("label", "name", "digest"))):
            return f"clip {number} is {_short(clip)}: label, name and digest are expected"
        if not _is_duration(clip.get("duration")):
            return f"clip {number} has the duration {_short(clip['duration'])}"
    return None


def _calibration_error(about: Mapping[str, Any]) -> str | None:
    for key in ("temperature", "threshold"):
        value, is_number = about[key], isinstance(about[key], (int, float)) and not isinstance(about[key], bool)
        if not (is_number or value == "fit" or (value is None and key == "threshold")):
            return f"{key} {_short(value)}"
    try:
        check_options(*(v if v in (None, "fit") else float(v) for v in (about["temperature"], about["threshold"])))
    except (InputError, OverflowError) as error:
        return str(error)
    return None


def _tensor_error(tensors: Mapping[str, Tensor], count: int) -> str | None:
    """Describe the first error in the tensors of an examples file with ``count`` clips, or return None."""
    if count and not set(tensors) - {_THUMBNAILS}:
        return "no features"
    for name, tensor in tensors.items():
        if not tensor.ndim or len(tensor) != count:
            return f"{name!r} is {describe_tensor(tensor)}, but the file has {count} clips"
        if name == _THUMBNAILS:
            if (
                tensor.dtype != torch.uint8
                or tensor.ndim != 5
                or tensor.shape[2] != 3
                or tensor.shape[3] != tensor.shape[4]
            ):
                return f"{name!r} is {describe_tensor(tensor)}, not [clips, frames, 3, side, side] of uint8"
        elif tensor.dtype not in _FLOATS:
            return f"{name!r} is {describe_tensor(tensor)}, not floating point"
        elif not tensor.isfinite().all():
            return f"{name!r} contains values that are not finite"
    return None


def _are_valid(values: Mapping[str, Any], checks: Mapping[str, Callable[[Any], bool]]) -> bool:
    return all(key in checks and checks[key](value) for key, value in values.items())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_stages(values: list[Any]) -> bool:
    return all(isinstance(value, int) for value in values)


def _is_size(value: Any) -> bool:
    return value == 0 or _is_count(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_duration(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and 0 <= value < float("inf"))


def _is_policy(value: Any) -> bool:
    return value in get_args(FramePolicy)


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # isfinite may not support other types
_KEYS = ("fingerprint", "preprocessing", "clips", "source", "temperature", "threshold")
_CONFIG: dict[str, Callable[[Any], bool]] = {
    "num_frames": _is_count,
    "image_size": _is_count,
    "short_side": _is_size,
    "frame_policy": _is_policy,
    "num_segments": _is_count,
    "frame_stride": _is_count,
}
_ADDED = {"num_segments": 1, "frame_stride": FRAME_STRIDE}  # entries that files from before the policy `dense` lack
_CHECKPOINT = {"path": _is_name, "image_size": _is_count, "short_side": _is_size, "frame_policy": _is_policy}
_BACKBONE: dict[str, Callable[[Any], bool]] = {
    "backbone": _is_name,
    "weights": lambda value: value is None or isinstance(value, str),
    "patch_grid": _is_count,
    "backbone_stage": lambda value: isinstance(value, int) or (isinstance(value, list) and _are_stages(value)),
    "num_frames": _is_count,
    "num_segments": _is_count,
    "frame_policy": _is_policy,
    "image_size": _is_count,
    "matching": _is_name,
    "matching_options": lambda value: isinstance(value, dict),
}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "none"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class on_class_or_instance:  # noqa: N801 - a decorator
    """Decorator of a method that can also be called on the class, which is then the first argument."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method, self.__doc__ = method, method.__doc__

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        return partial(self.method, owner if instance is None else instance)
