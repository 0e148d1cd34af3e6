"""Few-shot action recognition in video: STRM and its baseline TRX in PyTorch Lightning.

Names of axes: ``B`` episodes (or any leading axes), ``N`` way, ``K`` shot, ``Q`` queries, ``L`` frames, ``P`` rows and
columns of the patch grid, ``PP`` patches of a frame, ``T`` tuples, ``D`` channels, ``H`` and ``W`` pixels, ``h`` and
``w`` cells of the backbone's map.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from strm_lightning._version import __version__

if TYPE_CHECKING:
    from strm_lightning.classifier import FewShotClassifier
    from strm_lightning.data.datamodule import EpisodeDataModule
    from strm_lightning.episode import Episode
    from strm_lightning.models.strm import STRM
    from strm_lightning.training.module import STRMModule

__all__ = ["STRM", "Episode", "EpisodeDataModule", "FewShotClassifier", "STRMModule", "__version__"]

# Imported on first use: importing torch, lightning and timm takes seconds, which `strm --version` does not need.
_MODULES = {
    "STRM": "models.strm",
    "STRMModule": "training.module",
    "EpisodeDataModule": "data.datamodule",
    "FewShotClassifier": "classifier",
    "Episode": "episode",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
