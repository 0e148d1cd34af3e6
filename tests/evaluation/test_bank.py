"""Feature banks: what goes in comes out, in memory, in a mapped file, and from an earlier run's folder."""

import os
import tempfile
from collections import namedtuple
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch

from strm_lightning.episode import PooledMaps, TupleFeatures
from strm_lightning.evaluation.bank import FeatureBank
from strm_lightning.evaluation.encoding import coming_rows
from strm_lightning.evaluation.fingerprint import bank_fingerprint, feature_options
from strm_lightning.models.head import STRMHead
from tests.evaluation.test_protocol import pytestmark as pytestmark
from tests.evaluation.test_protocol import run_test
from tests.test_module import data, module, trainer

ROWS = [3, 11, 4, 20]


def tuples(rows: torch.Tensor, dtype: torch.dtype = torch.float32) -> TupleFeatures:
    """Features that say which row they are of."""
    value = rows.view(-1, 1, 1).to(dtype)
    return TupleFeatures(keys=value.expand(-1, 6, 5), values=-value.expand(-1, 6, 5), relations=None)


def full(dtype: torch.dtype = torch.float32, **options: Any) -> FeatureBank:
    bank: FeatureBank = FeatureBank(ROWS, **options)
    keys = torch.tensor([[row, view] for row in ROWS for view in range(bank.views)])
    for part in keys.split(3):
        bank.put(part, tuples(part[:, 0] + 100 * part[:, 1], dtype))
    return bank


@pytest.mark.parametrize("limit", [1.0, 1e-9])
@pytest.mark.parametrize("views", [1, 3])
def test_what_goes_in_comes_out(limit: float, views: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bank = full(limit_gb=limit, views=views)
    assert ("temporary file" in bank.describe()) == (limit < 1)
    assert not list(tmp_path.iterdir())  # nothing would stay if we were killed now
    rows, chosen = torch.tensor([[20, 3], [3, 4]]), torch.tensor([[0, 2], [1, 1]]) % views
    found = bank.get(rows, chosen)
    expected = (rows + 100 * chosen)[..., None, None].expand(2, 2, 6, 5).float()
    torch.testing.assert_close(found.keys, expected)
    torch.testing.assert_close(found.values, -expected)
    assert found.relations is None
    assert bank.nbytes == 2 * 4 * 4 * views * 6 * 5
    with pytest.raises(KeyError, match="1 of 2 videos are not in the bank"):
        bank.get(torch.tensor([3, 5]))


def test_a_bank_that_fits_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1000, 900, 100))
    with pytest.raises(ValueError, match=r"a bank of 4 videos takes .*bank_limit_gb 1e-09 and .*evaluation: episodes"):
        full(limit_gb=1e-9)


def test_its_size_is_told_before_any_of_it_is_allocated() -> None:
    told = []
    bank: FeatureBank = FeatureBank(ROWS, views=2)
    keys = torch.tensor([[row, view] for row in ROWS for view in range(2)])
    bank.fill([(keys, keys[:, 0])], tuples, tell=lambda size: told.append((size, bank.group)))
    assert told == [("4 videos, 2 views of each, 0.0 MB in main memory", None)]
    assert bank.describe() == told[0][0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_bank_on_a_gpu_finds_the_same() -> None:
    bank, moved, rows = full(), full(), torch.tensor([[20, 3], [3, 4]])
    moved.move(torch.device("cuda"))
    assert moved.get(rows).keys.device.type == "cuda"
    torch.testing.assert_close(moved.get(rows).to("cpu"), bank.get(rows), rtol=0, atol=0)


def test_a_bank_that_cannot_be_kept_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("No space left on device")

    bank = full()
    bank.save(tmp_path / "kept", "mark")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        with pytest.raises(OSError, match="No space"):
            bank.save(tmp_path / "kept", "other")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert FeatureBank.load(tmp_path / "kept", "mark") is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bank_survives_its_folder(tmp_path: Path, dtype: torch.dtype) -> None:
    bank = full(dtype, views=2)
    bank.save(tmp_path / "kept", "mark")
    loaded = FeatureBank.load(tmp_path / "kept", "mark")
    assert loaded is not None
    rows, views = torch.tensor([20, 4]), torch.tensor([1, 0])
    torch.testing.assert_close(loaded.get(rows, views), bank.get(rows, views), rtol=0, atol=0)
    assert FeatureBank.load(tmp_path / "kept", "other mark") is None
    assert FeatureBank.load(tmp_path / "nothing", "mark") is None
    with (tmp_path / "kept" / "keys").open("r+b") as file:
        file.truncate(7)
    assert FeatureBank.load(tmp_path / "kept", "mark") is None
    bank.save(tmp_path / "kept", "mark")  # a damaged one is replaced
    assert FeatureBank.load(tmp_path / "kept", "mark") is not None
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_second_test_encodes_nothing_and_finds_the_same(
    actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = {"bank_dir": str(tmp_path / "banks")}
    first = run_test(tmp_path / "1", module(**keep), data(actions))
    assert len(list((tmp_path / "banks").iterdir())) == 1
    again = module(**keep)
    monkeypatch.setattr(again.model, "encode", None)
    second = run_test(tmp_path / "2", again, data(actions, shot=2, test_shots=[1], test_episodes=9))
    assert second["sweep"][0]["accuracy"] == first["accuracy"]
    other = module(**keep)
    torch.nn.init.zeros_(other.model.head.trm[0].key.bias[:1])
    run_test(tmp_path / "3", other, data(actions))
    assert len(list((tmp_path / "banks").iterdir())) == 2


def test_a_frozen_backbone_is_run_once_for_all_heads(actions: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"freeze_backbone": True, "bank_dir": str(tmp_path / "banks")}
    runs = {}
    episodes = data(actions)
    for match_dim in (8, 12):
        model = module(**options, match_dim=match_dim)
        if match_dim == 12:
            model.model.backbone.forward = None
        run = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
        run.fit(model, datamodule=episodes)
        run.test(model, datamodule=episodes, verbose=False)
        runs[match_dim] = {path.name for path in (tmp_path / "banks").iterdir()}
    assert runs[8] == runs[12]
    assert len(runs[8]) == 3  # train, val and test


def test_other_videos_never_get_the_bank_of_earlier_ones(actions: Path, tmp_path: Path) -> None:
    """The same rows of other clips: cut otherwise here, which the module cannot tell by rows."""
    options: dict[str, Any] = {"freeze_backbone": True, "bank_dir": str(tmp_path / "banks")}
    model, found = module(**options), {}
    for size in (32, 48):
        run_test(tmp_path, model, data(actions, image_size=size))
        trainer(tmp_path, max_epochs=1, enable_checkpointing=False).fit(
            model, datamodule=data(actions, image_size=size)
        )
        found[size] = run_test(tmp_path, model, data(actions, image_size=size))["per_episode"]
    fresh = module(freeze_backbone=True)
    fresh.load_state_dict(model.state_dict())
    assert found[48] == run_test(tmp_path, fresh, data(actions, image_size=48))["per_episode"]


def test_everything_that_decides_features_is_in_the_fingerprint(actions: Path, tmp_path: Path) -> None:
    def mark(model: Any = None, options: Any = None, views: int = 0, precision: str = "32-true", **others: Any) -> str:
        episodes = data(actions, **others)
        episodes.setup("test")
        rows = list(range(5))
        network = (model or module()).model
        return bank_fingerprint(episodes, "test", rows, network, options or {}, views=views, precision=precision)

    same = mark()
    assert same == mark(flip=False) == mark(seed=1) == mark(shot=2) == mark(way=3)
    others = [
        mark(module(normalize=False)), mark(module(lr=0.0, center_clip=True), {"center_clip": True}), mark(views=1),
        mark(views=2), mark(views=1, seed=1), mark(views=1, flip=False), mark(precision="bf16-mixed"),
        mark(image_size=36), mark(short_side=40), mark(frame_policy="release"), mark(num_frames=5),
    ]  # fmt: skip
    changed = module()
    changed.model.backbone.net.bn1.running_mean[0] += 1
    others.append(mark(changed))
    path = actions / "down" / "0.mp4"
    status = path.stat()
    path.touch()
    others.append(mark())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len({same, *others}) == len(others) + 1
    assert mark() == same


class OwnHead(STRMHead):
    """The same options and weights, another idea of features."""


def test_another_head_is_another_fingerprint(actions: Path) -> None:
    episodes, own = data(actions), module()
    episodes.setup("test")
    marks = [bank_fingerprint(episodes, "test", [0], own.model, {})]
    own.model.head.__class__ = OwnHead
    marks.append(bank_fingerprint(episodes, "test", [0], own.model, {}))
    assert marks[0] != marks[1]


OTHER_OPTIONS: dict[str, Any] = {
    "num_frames": 5, "patch_grid": 3, "tuple_sizes": (3,), "match_dim": 6, "qc_dim": 7, "variant": "official",
    "patch_enrichment": False, "frame_enrichment": False, "query_class": False,
    "center_clip": True, "scale_clip": True, "patch_pooling": "layout", "proj_dim": 5,
}  # fmt: skip


def test_every_option_of_the_heads_that_changes_features_is_in_the_fingerprint() -> None:
    """Also the options that are to come: this fails where a new one has no other value here."""
    assert OTHER_OPTIONS.keys() == signature(STRMHead).parameters.keys() - {"dim"}
    maps, usual = torch.randn(2, 4, 6, 8, 8), {"backbone": "test", "num_frames": 4, "match_dim": 8}
    pooled = STRMHead(6, num_frames=4, match_dim=8).pool(maps)
    for name, value in OTHER_OPTIONS.items():
        options = usual | {name: value}
        assert feature_options(options, pooled=False) != feature_options(usual, pooled=False)
        if name != "num_frames":  # the data module's, which counts apart
            head = STRMHead(6, **{key: option for key, option in options.items() if key != "backbone"})
            found = head.pool(maps)
            alike = found.grid.shape == pooled.grid.shape and torch.equal(found.grid, pooled.grid)
            assert alike == (feature_options(options, pooled=True) == feature_options(usual, pooled=True)), name


def test_only_videos_of_the_coming_episodes_are_encoded(actions: Path, tmp_path: Path) -> None:
    run, model, episodes = trainer(tmp_path, limit_test_batches=1), module(), data(actions)
    seen: list[int] = []
    encode = model.model.encode
    model.model.encode = lambda clips: seen.append(len(clips)) or encode(clips)
    run.test(model, datamodule=episodes, verbose=False)
    assert sum(seen) == len(coming_rows(run, "test")) < 18


def test_maps_are_kept_too() -> None:
    bank: FeatureBank = FeatureBank([0])
    maps = PooledMaps(grid=torch.randn(1, 2, 4, 3), mean=torch.randn(1, 2, 3))
    bank.put(torch.tensor([[0, 0]]), maps)
    torch.testing.assert_close(bank.get(torch.tensor([0])), maps)
