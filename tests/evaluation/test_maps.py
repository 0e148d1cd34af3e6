"""Pooled maps on disk: what `STRM.pool` gives, encoded once."""

from pathlib import Path

import pytest
import torch

from strm_lightning.errors import MissingFileError
from strm_lightning.evaluation.maps import read_maps, store_maps
from strm_lightning.models.strm import STRM
from tests.evaluation.test_protocol import pytestmark as pytestmark
from tests.test_module import data

OPTIONS = {"backbone": "test_resnet", "pretrained": False, "num_frames": 4}


@pytest.mark.parametrize("views", [0, 2])
def test_stored_maps_are_those_of_the_model(views: int, actions: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, videos = STRM(**OPTIONS, patch_grid=2).eval(), data(actions)
    videos.setup()
    rows = [int(row) for members in videos.videos["test"].members for row in members][:6]
    path = store_maps(tmp_path, videos, model.backbone, rows, name="tiny", patch_grid=2, views=views)
    assert path.name.startswith("tiny-")
    keys, clips = zip(*videos.video_loader("test", rows, views=views), strict=True)
    keys, clips = torch.cat(keys), torch.cat(clips)
    for center in (False, True):
        for scaled in (False, True):
            head = STRM(**OPTIONS, patch_grid=2, center_clip=center, scale_clip=scaled).head
            found = read_maps(path, center_clip=center, scale_clip=scaled).get(keys[:, 0], keys[:, 1])
            with torch.no_grad():
                wanted = head.pool(model.backbone(clips))
            torch.testing.assert_close(found, vars(wanted))


def test_videos_are_encoded_once_and_again_if_something_changed(actions: Path, tmp_path: Path) -> None:
    videos = data(actions)
    videos.setup()
    rows = [int(row) for row in videos.videos["test"].members[0]]
    backbone = STRM(**OPTIONS).backbone
    path = store_maps(tmp_path, videos, backbone, rows)
    written = path.stat().st_mtime_ns
    assert store_maps(tmp_path, videos, backbone, [*rows, rows[0]]) == path
    assert path.stat().st_mtime_ns == written
    assert store_maps(tmp_path, videos, backbone, rows, views=1) != path
    assert store_maps(tmp_path, videos, backbone, rows[:2]) != path
    assert store_maps(tmp_path, videos, STRM(**OPTIONS).backbone, rows) != path  # other random weights
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(UserWarning, match="checksum of .* differs; the videos are encoded again"):
        store_maps(tmp_path, videos, backbone, rows)
    with pytest.raises(MissingFileError, match="no pooled maps at"):
        read_maps(tmp_path / "nothing.safetensors")
