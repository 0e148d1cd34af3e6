"""Encoded examples as one .safetensors file: features, labels, preprocessing and the fingerprint of the weights."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from strm_lightning.classifier.calibration import Fitted
from strm_lightning.classifier.clips import Preprocessing
from strm_lightning.classifier.matchers import Matcher
from strm_lightning.classifier.support import EncodedClip, SupportSet
from strm_lightning.errors import InputError, MissingFileError
from strm_lightning.fileio import atomic_path

_FORMAT = "strm-lightning examples 1"
_THUMBNAILS = "thumbnails"


def save(
    path: Path,
    support: SupportSet,
    how: Preprocessing,
    source: Mapping[str, Any] | None,
    calibration: Mapping[str, Fitted | None],
    *,
    thumbnails: bool,
) -> None:
    """Write a support set, whole or not at all."""
    clips = [(label, clip) for label in support.labels for clip in support.clips[label]]
    about = {
        "format": _FORMAT,
        "fingerprint": support.matcher.fingerprint(),
        "preprocessing": asdict(how),
        "clips": [{"label": label, "name": clip.name, "digest": clip.digest} for label, clip in clips],
        "source": source,
        **calibration,
    }
    names = clips[0][1].features if clips else ()
    tensors = {name: torch.stack([clip.features[name] for _, clip in clips]).cpu() for name in names}
    if clips and thumbnails:
        tensors[_THUMBNAILS] = torch.stack([clip.thumbnail for _, clip in clips])
    with atomic_path(path) as part:
        save_file(tensors, part, {name: json.dumps(value) for name, value in about.items()})


@dataclass(frozen=True)
class Stored:
    """A file of examples, read but not yet held against a model."""

    path: Path
    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def calibration(self) -> Mapping[str, Fitted | None]:
        """Temperature and threshold, as they were asked for."""
        return {name: self.about[name] for name in ("temperature", "threshold")}

    def support_for(self, matcher: Matcher, how: Preprocessing) -> SupportSet:
        """The examples for this model.

        Raises:
            ValueError: they were encoded by another model, or from other pixels.
        """
        mine, theirs = matcher.fingerprint(), self.about["fingerprint"]
        if mine != theirs:
            raise InputError(
                f"{self.path}: its examples were encoded with other weights (fingerprint {theirs[:8]}, these are "
                f"{mine[:8]}): load it with the model that made it ({self.about['source']}), or fit the clips again"
            )
        if asdict(how) != self.about["preprocessing"]:
            raise InputError(
                f"{self.path}: its clips were made with {self.about['preprocessing']}, this classifier's with "
                f"{asdict(how)}"
            )
        tensors = dict(self.tensors)
        blank = torch.zeros(len(self.about["clips"]), how.num_frames, 3, 1, 1, dtype=torch.uint8)
        thumbnails = tensors.pop(_THUMBNAILS, blank)
        support = SupportSet(matcher)
        for i, clip in enumerate(self.about["clips"]):
            features = {name: tensor[i].to(matcher.device) for name, tensor in tensors.items()}
            support.add(clip["label"], [EncodedClip(clip["name"], clip["digest"], thumbnails[i], features)])
        return support


def load(path: Path) -> Stored:
    """Read a file that `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or something else.
    """
    if not path.is_file():
        raise MissingFileError(f"examples {path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        with safe_open(path, "pt") as file:
            about = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"examples {path}: cannot be read ({error})") from error
    if about.get("format") != _FORMAT:
        raise InputError(f"examples {path}: not a file that FewShotClassifier.save wrote")
    return Stored(path, about, tensors)


class on_class_or_instance:  # noqa: N801 - a decorator
    """A method that may be called on its class too, which is then its first argument."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method, self.__doc__ = method, method.__doc__

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        return partial(self.method, owner if instance is None else instance)
