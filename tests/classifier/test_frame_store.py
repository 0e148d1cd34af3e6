"""Windows of a stream: the same features as clips of their frames, each frame encoded once, constant memory."""

import pytest
import torch
from torch import Tensor, nn

from strm_lightning.classifier.clips import ClipConfig
from strm_lightning.classifier.frames import FrameStore
from strm_lightning.data.sampling import select_frames
from strm_lightning.errors import InputError
from strm_lightning.models import STRM, Backbone
from tests.classifier.conftest import bare_model, make_model

HOW = ClipConfig(num_frames=4, image_size=32)
WINDOWS = [(0, 4), (3, 9), (1, 12), (10, 12), (5, 6)]


class Mixing(nn.Module):
    """A backbone in which each frame depends on the frame before it."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, clips: Tensor) -> Tensor:
        maps = self.backbone(clips)
        return maps + maps.roll(1, -4)


def mixing_model() -> STRM:
    model = bare_model()
    model.backbone = Mixing(model.backbone)
    return model


MODELS = {
    "patches": lambda: bare_model(),
    "kernel_ridge": lambda: bare_model("kernel_ridge"),
    "frames": lambda: bare_model("otam"),
    "trm": lambda: make_model(),
    "centred": lambda: make_model(center_clip=True, patch_pooling="layout"),
    "scaled": lambda: make_model(scale_clip=True),
    "centred and scaled": lambda: make_model(scale_clip=True, center_clip=True),
    "video backbone": mixing_model,
}


def pixels(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@torch.no_grad()
def clip_of(model: STRM, frames: Tensor, window: tuple[int, int], policy: str = "segments") -> dict[str, Tensor]:
    start, end = window
    chosen = [start + i for i in select_frames(policy, end - start, 4, None)]
    return model.head.encode(model.encode(frames[chosen]))


@pytest.mark.parametrize("policy", ["segments", "release"])
@pytest.mark.parametrize("name", MODELS)
def test_a_window_has_the_features_of_a_clip_of_its_frames(name: str, policy: str) -> None:
    model, frames = MODELS[name](), pixels(12)
    store = FrameStore(model, ClipConfig(num_frames=4, image_size=32, frame_policy=policy), capacity=12)
    for part in frames.split(5):
        store.push(part)
    encoded = store.encode(WINDOWS)
    for row, window in enumerate(WINDOWS):
        expected = clip_of(model, frames, window, policy)
        assert set(expected) == set(encoded)
        for key, tensor in expected.items():
            torch.testing.assert_close(encoded[key][row], tensor, rtol=1e-4, atol=1e-5)


def test_many_windows_are_the_same_as_few() -> None:
    model, frames = bare_model(), pixels(12)
    store = FrameStore(model, HOW, capacity=12)
    store.push(frames)
    windows = [(a, b) for a in range(11) for b in range(a + 1, 12)]
    assert len(windows) > 64
    together = store.encode(windows)
    for row in (0, 31, 32, 65):
        torch.testing.assert_close(together["patches"][row], store.encode([windows[row]])["patches"][0])


@pytest.mark.parametrize("name", ["patches", "centred", "video backbone"])
def test_memory_does_not_grow_and_frames_are_encoded_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoded = MODELS[name](), []
    real = Backbone.forward
    monkeypatch.setattr(
        Backbone, "forward", lambda self, clips: encoded.append(clips.shape[:-3].numel()) or real(self, clips)
    )
    store, sizes = FrameStore(model, HOW, capacity=8), set()
    for seed in range(20):
        store.push(pixels(3, seed))
        sizes.add(tuple(tensor.shape[0] for tensor in store.tensors()))
        store.encode([(max(0, store.end - n), store.end) for n in (2, 3, 5, 8)])
    assert {size for each in sizes for size in each} == {8}
    if name != "video backbone":
        assert sum(encoded) == 60
    newest = torch.cat([pixels(3, seed) for seed in range(17, 20)])[-8:]
    expected = clip_of(model, newest, (0, 8))
    torch.testing.assert_close(
        store.encode([(52, 60)])[next(iter(expected))][0], next(iter(expected.values())), rtol=1e-4, atol=1e-5
    )


def test_a_step_without_a_frame_repeats_the_frame_before_it() -> None:
    model, frames = bare_model(), pixels(4)
    store = FrameStore(model, HOW, capacity=6)
    store.push(frames, [0, 1, 4, 30])  # the gap before 30 is longer than the store
    assert store.end == 31
    expected = clip_of(model, frames[[2, 2, 2, 2, 2, 3]], (0, 6))["patches"]
    torch.testing.assert_close(store.encode([(25, 31)])["patches"][0], expected)
    store = FrameStore(model, HOW, capacity=6)
    store.push(frames[:3], [0, 1, 4])
    expected = clip_of(model, frames[[0, 1, 1, 1, 2]], (0, 5))["patches"]
    torch.testing.assert_close(store.encode([(0, 5)])["patches"][0], expected)


def test_the_store_needs_a_size() -> None:
    with pytest.raises(InputError, match="capacity is 0"):
        FrameStore(bare_model(), HOW, 0)
