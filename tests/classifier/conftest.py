"""A small model with random weights, and clips of a square that moves."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from strm_lightning.classifier import FewShotClassifier
from strm_lightning.classifier.clips import ClipConfig
from strm_lightning.models import STRM

torch.set_num_threads(1)  # the models are so small that threads only wait for each other

HOW = ClipConfig(num_frames=4, image_size=64, short_side=64)
FPS = 8  # of long videos and their examples
STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


def moving(motion: str, seed: int = 0, frames: int = 12, height: int = 64, width: int = 64) -> np.ndarray:
    """A bright square that moves over noise, ``[frames, height, width, 3]``."""
    rng = np.random.default_rng(seed)
    video = np.repeat(rng.integers(0, 60, (1, height, width, 3), dtype=np.uint8), frames, 0)
    side, travel = height // 4, np.linspace(-0.35, 0.35, frames)
    colour = rng.integers(160, 255, 3)
    for image, place in zip(video, travel, strict=True):
        y, x = (
            int(s / 2 + s * place * step - side / 2) for s, step in zip((height, width), STEPS[motion], strict=True)
        )
        image[y : y + side, x : x + side] = colour
    return video


def write_video(path: Path, frames: np.ndarray, fps: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_examples(folder: Path) -> dict[str, list[Path]]:
    """Three files of each of three motions, of different durations."""
    return {
        motion: [
            write_video(folder / motion / f"{seed}.mp4", moving(motion, seed, frames=count), FPS)
            for seed, count in enumerate((14, 16, 19))
        ]
        for motion in ("left", "right", "up")
    }


def save_weights(net: nn.Module, path: Path) -> None:
    """Write a backbone's weights to a file; safetensors takes contiguous tensors only."""
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, path)


def make_model(seed: int = 0, **options: object) -> STRM:
    """A small model with random weights; the sizes of ``trm`` go to ``trm`` alone."""
    torch.manual_seed(seed)
    sizes = {"num_frames": 4, "match_dim": 12, "proj_dim": 16 if options.get("matching", "trm") == "trm" else None}
    model = STRM("test_resnet", pretrained=False, **{**sizes, **options}).eval()
    for parameter in model.head.parameters():  # away from trivial starts, and from distances too small for float32
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def bare_model(matching: str = "patches", **options: object) -> STRM:
    """A backbone and a matching method without weights."""
    torch.manual_seed(0)
    return STRM("test_resnet", pretrained=False, num_frames=4, matching=matching, matching_options=options).eval()


@pytest.fixture(scope="session")
def trained() -> STRM:
    return make_model(tuple_sizes=(1, 2), center_clip=True, patch_pooling="layout")


@pytest.fixture(scope="session")
def bare() -> STRM:
    return bare_model()


@pytest.fixture(params=["trained", "bare"])
def classifier(request: pytest.FixtureRequest) -> FewShotClassifier:
    return FewShotClassifier(request.getfixturevalue(request.param), HOW)


@pytest.fixture
def examples() -> dict[str, list[np.ndarray]]:
    """Uneven shots: 3, 2 and 1."""
    return {motion: [moving(motion, seed) for seed in range(n)] for motion, n in (("left", 3), ("right", 2), ("up", 1))}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> FewShotClassifier:
    """A classifier whose examples have durations."""
    return FewShotClassifier(bare_model(), HOW).fit(write_examples(tmp_path_factory.mktemp("examples")))
