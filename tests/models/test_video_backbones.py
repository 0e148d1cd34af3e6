"""Video backbones of torchvision: maps of several time steps, from segments of consecutive frames."""

from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model
from torchvision.models.video.mvit import MSBlockConfig, MViT

from strm_lightning.models import STRM
from strm_lightning.models.backbones import torchvision as module
from strm_lightning.models.backbones.torchvision import VideoBackbone
from strm_lightning.training.memory import memory_of_step
from tests.models.test_training_memory import step
from tests.test_memory import EPISODE, held_for_backward

# Time steps of 16 frames, channels, and pixels of a side in pretraining.
MODELS = {
    "r2plus1d_18": (2, 512, 112),
    "r3d_18": (2, 512, 112),
    "mc3_18": (16, 512, 112),
    "s3d": (2, 1024, 224),
    "mvit_v1_b": (8, 768, 224),
    "mvit_v2_s": (8, 768, 224),
    "swin3d_t": (8, 768, 224),
    "swin3d_s": (8, 768, 224),
    "swin3d_b": (8, 1024, 224),
}


def without_values(name: str, **options: object) -> VideoBackbone:
    with torch.device("meta"):
        return VideoBackbone(f"torchvision/{name}", pretrained=False, **options)


def pixels(frames: int, size: int, *leading: int) -> Tensor:
    return torch.rand(*leading, frames, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_time_steps_channels_and_sizes(name: str) -> None:
    backbone = without_values(name, num_segments=2)
    steps, dim, size = MODELS[name]
    assert (backbone.steps(32), backbone.dim, backbone.image_size) == (2 * steps, dim, size)
    assert not backbone.frame_wise


@pytest.mark.parametrize("name", ["r2plus1d_18", "mc3_18", "swin3d_t"])
def test_the_pooled_map_with_the_classifier_is_the_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = get_model(name, weights=None, num_classes=3).eval()
    torch.save(original.state_dict(), tmp_path / f"{name}.pth")
    backbone = VideoBackbone(f"torchvision/{name}", weights=tmp_path / f"{name}.pth").eval()
    clip = pixels(4, 32)
    with torch.no_grad():
        expected = original(((clip - backbone.mean) / backbone.std).movedim(0, 1).unsqueeze(0))
        maps = backbone(clip)
        classifier = original.fc if hasattr(original, "fc") else original.head
        torch.testing.assert_close(classifier(maps.mean((0, 2, 3))), expected[0], rtol=1e-3, atol=1e-4)
    assert maps.shape[:2] == (backbone.steps(4), backbone.dim)
    assert f"{name}.pth" in backbone.pretrained_on


def small_mvit() -> MViT:
    blocks = [
        MSBlockConfig(1, 8, 8, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
        MSBlockConfig(1, 8, 16, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
    ]
    return MViT((32, 32), 4, blocks, residual_pool=False, residual_with_cls_embed=True, rel_pos_embed=False,
                proj_after_attn=False, num_classes=3)  # fmt: skip


def test_tokens_of_an_mvit_are_its_map(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, tokens = small_mvit().eval(), []
    monkeypatch.setattr(module, "_create", lambda name, pretrained: net)
    monkeypatch.setattr(module, "_FRAMES", 4)
    preset = SimpleNamespace(crop_size=[32], mean=[0.5] * 3, std=[0.5] * 3)
    weights = SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: preset))
    monkeypatch.setattr(module, "get_model_weights", lambda name: weights)
    backbone = VideoBackbone("torchvision/mvit_v2_s", pretrained=False).eval()
    handle = net.norm.register_forward_hook(lambda _, __, output: tokens.append(output))
    clip = pixels(4, 32)
    maps = backbone(clip)
    handle.remove()
    assert maps.shape == (2, 16, 4, 4)
    for t, row, column in ((0, 0, 0), (1, 2, 3)):
        torch.testing.assert_close(maps[t, :, row, column], tokens[0][0, 1 + t * 16 + row * 4 + column])
    with pytest.raises(ValueError, match="takes segments of 4 frames of 32 x 32 pixels only, not 8 frames"):
        backbone.steps(8)
    with pytest.raises(ValueError, match="of 32 x 32 pixels only, not 4 frames of 48 x 48"):
        backbone.check_size(48)


def test_segments_are_encoded_separately() -> None:
    torch.manual_seed(0)
    backbone = VideoBackbone("torchvision/mc3_18", pretrained=False, num_segments=2).eval()
    clips = pixels(8, 16, 2)
    with torch.no_grad():
        maps = backbone(clips)
        assert maps.shape == (2, 8, 512, 1, 1)
        backbone.num_segments = 1
        torch.testing.assert_close(maps, torch.cat([backbone(clips[:, :4]), backbone(clips[:, 4:])], 1))
        assert (backbone(clips) - maps).abs().max() > 1e-3 * maps.abs().max()  # one segment mixes their frames
    with pytest.raises(ValueError, match="7 frames of a clip cannot be divided into 3 segments"):
        without_values("mc3_18", num_segments=3).steps(7)


@pytest.mark.parametrize("saving", [{"chunk_frames": 3}, {"checkpoint_blocks": True}])
def test_saving_memory_changes_no_gradient_and_no_statistics(saving: dict) -> None:
    policy = {"batch_norm": "frozen" if "chunk_frames" in saving else "train"}
    head = {"num_frames": 2, "match_dim": 8, "patch_grid": 2, "pretrained": False}
    torch.manual_seed(0)
    plain, other = (STRM("torchvision/mc3_18", **head, **policy, **extra).double() for extra in ({}, saving))
    other.load_state_dict(plain.state_dict())
    (expected, statistics), (gradients, found) = step(plain), step(other)
    assert expected.keys() == gradients.keys() == dict(plain.named_parameters()).keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient)
    for name, value in statistics.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(found[name], value)


def test_the_estimate_of_memory_uses_frames_not_time_steps() -> None:
    sizes = {"pretrained": False, "match_dim": 8, "patch_grid": 2, "batch_norm": "frozen"}
    model = STRM("torchvision/r3d_18", num_frames=4, num_segments=2, **sizes)
    assert model.head.num_frames == 2
    measured = held_for_backward(model, 32)
    estimate = memory_of_step(model, image_size=32, **EPISODE).activations
    assert measured < estimate < 2.5 * measured  # a backward pass of the first layers needs as much again
    with torch.device("meta"):
        longer = STRM("torchvision/r3d_18", num_frames=16, num_segments=2, **sizes)  # as many time steps
    assert longer.head.num_frames == 2
    assert memory_of_step(longer, image_size=32, **EPISODE).activations > 2 * estimate


def test_too_few_time_steps_for_omega_are_refused() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=r"gives 1 time steps of 8 frames in 1 segments"):
        STRM("torchvision/r2plus1d_18", pretrained=False, num_frames=8)
    with torch.device("meta"), pytest.raises(ValueError, match=r"takes segments of 16 frames of 224 x 224 pixels only"):
        STRM("torchvision/mvit_v2_s", pretrained=False, num_frames=8)
    with torch.device("meta"):
        assert STRM("torchvision/r2plus1d_18", pretrained=False, num_frames=16, num_segments=2).head.num_frames == 2


def test_names_and_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'r2plus1d_18'"):
        VideoBackbone("torchvision/r2plus1d18", pretrained=False)
    with pytest.raises(ValueError, match="'torchvision/r3d_18' is not a timm model"):
        STRM("torchvision/r3d_18", pretrained=False, backbone_stage=-2)


def test_weights_that_cannot_be_downloaded_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"r3d_18-\w+\.pth cannot be downloaded .*no network") as info,
    ):
        VideoBackbone("torchvision/r3d_18")
    assert "\n" not in str(info.value)
