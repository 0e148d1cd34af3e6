"""Feature banks: what goes in comes out, in memory, in a mapped file, and from an earlier run's folder."""

import errno
import json
import os
import sys
import tempfile
import warnings
from collections import namedtuple
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from strm_lightning.episode import PooledMaps
from strm_lightning.errors import WriteError
from strm_lightning.evaluation.bank import DamagedBankError, FeatureBank, _mapped
from strm_lightning.evaluation.encoding import coming_rows
from strm_lightning.evaluation.fingerprint import bank_fingerprint, feature_options
from strm_lightning.models.head import STRMHead
from strm_lightning.models.matching.base import Encoded, register_matching
from strm_lightning.models.matching.frame_methods import BiMHM
from tests.evaluation.test_protocol import pytestmark as pytestmark
from tests.evaluation.test_protocol import run_test
from tests.test_module import data, module, trainer

ROWS = [3, 11, 4, 20]


def features(rows: torch.Tensor, dtype: torch.dtype = torch.float32) -> Encoded:
    """Features whose values are the number of their row."""
    value = rows.view(-1, 1, 1).to(dtype)
    return {"keys": value.expand(-1, 6, 5), "values": -value.expand(-1, 6, 5)}


def full(dtype: torch.dtype = torch.float32, **options: Any) -> FeatureBank:
    bank = FeatureBank(ROWS, **options)
    keys = torch.tensor([[row, view] for row in ROWS for view in range(bank.views)])
    for part in keys.split(3):
        bank.put(part, features(part[:, 0] + 100 * part[:, 1], dtype))
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
    torch.testing.assert_close(found, {"keys": expected, "values": -expected})
    assert bank.nbytes == 2 * 4 * 4 * views * 6 * 5
    with pytest.raises(KeyError, match="1 of 2 videos are not in the bank"):
        bank.get(torch.tensor([3, 5]))


def test_a_bank_that_fits_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1000, 900, 100))
    with pytest.raises(
        ValueError, match=r"a bank of 4 videos is too large: it .*limit_gb 1e-09, .*evaluation: episodes"
    ):
        full(limit_gb=1e-9)


@pytest.mark.parametrize(("others", "fits"), [(0, True), (1, True), (2, False)])
def test_every_process_of_a_machine_needs_room(others: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """960 bytes for each process, and 2,500 are free; processes of other machines do not count."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(9000, 6500, 2500))

    def gather(value: Any) -> list[Any]:
        if not isinstance(value, tuple):
            return [value]
        (host, disk), *rest = value
        return [value] * (1 + others) + [((f"not {host}", disk), *rest)] * 2

    monkeypatch.setattr("strm_lightning.evaluation.bank._gather", gather)
    if fits:
        assert "temporary file" in full(limit_gb=1e-9).describe()
    else:
        with pytest.raises(ValueError, match=r"each of 3 processes on .* and 0\.0 MB are free"):
            full(limit_gb=1e-9)


def test_space_of_a_mapped_bank_is_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a disk that fills up while videos are encoded would kill the process by SIGBUS."""
    tensor = _mapped(tmp_path / "bank", (300, 5, 7), torch.float32)
    assert tensor.shape == (300, 5, 7)
    assert not tensor.any()
    assert (tmp_path / "bank").stat().st_blocks * 512 >= tensor.nbytes

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    with pytest.raises(WriteError, match=r"a temporary file in .*No space left on device; set TMPDIR"):
        full(limit_gb=1e-9)
    bank = "strm_lightning.evaluation.bank"
    monkeypatch.setattr(f"{bank}._gather", lambda value: [value, value or "another process: full"])
    with pytest.raises(WriteError, match="another process: full"):
        full()


def test_its_size_is_told_before_any_of_it_is_allocated() -> None:
    told = []
    bank = FeatureBank(ROWS, views=2)
    keys = torch.tensor([[row, view] for row in ROWS for view in range(2)])
    bank.fill([(keys, keys[:, 0])], features, log=lambda size: told.append((size, bank.tensors)))
    assert told == [("4 videos, 2 views of each, 0.0 MB in main memory", None)]
    assert bank.describe() == told[0][0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_bank_on_a_gpu_finds_the_same() -> None:
    bank, moved, rows = full(), full(), torch.tensor([[20, 3], [3, 4]])
    moved.move(torch.device("cuda"))
    found = moved.get(rows)
    assert {tensor.device.type for tensor in found.values()} == {"cuda"}
    found = {name: tensor.cpu() for name, tensor in found.items()}
    torch.testing.assert_close(found, bank.get(rows), rtol=0, atol=0)


@pytest.mark.parametrize("error", [SafetensorError("No space left on device"), OSError("No space left on device")])
def test_a_bank_that_cannot_be_kept_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise error

    bank, path = full(), tmp_path / "kept.safetensors"
    bank.save(path, "mark")
    with monkeypatch.context() as patch:
        patch.setattr("strm_lightning.evaluation.bank.save_file", refuse)
        with pytest.raises(WriteError, match=r"cannot be written.*No space"):
            bank.save(path, "other")
    assert list(tmp_path.iterdir()) == [path]
    assert FeatureBank.load(path, "mark") is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bank_survives_its_file(tmp_path: Path, dtype: torch.dtype) -> None:
    bank, path = full(dtype, views=2), tmp_path / "kept.safetensors"
    bank.save(path, "mark")
    loaded = FeatureBank.load(path, "mark")
    assert loaded is not None
    assert (loaded.rows.tolist(), loaded.views, loaded.place) == (sorted(ROWS), 2, str(path))
    rows, views = torch.tensor([20, 4]), torch.tensor([1, 0])
    torch.testing.assert_close(loaded.get(rows, views), bank.get(rows, views), rtol=0, atol=0)
    assert FeatureBank.load(path, "other mark") is None
    assert FeatureBank.load(tmp_path / "nothing", "mark") is None


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 7)


def zero_some_bytes(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes(40))


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def edit(path: Path, change: Any, **about: Any) -> None:
    header = metadata(path)
    header["bank"] = json.dumps(json.loads(header["bank"]) | about)
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(tensors) or tensors, path, header)


DAMAGES: dict[str, Any] = {
    "cut off": cut_off,
    "not a bank": lambda path: path.write_bytes(b"what is this"),
    "without our header": lambda path: save_file({"keys": torch.zeros(4, 6, 5)}, path),
    "zeroed bytes": zero_some_bytes,
    "swapped rows": lambda path: edit(path, lambda t: {n: x.flip(0) for n, x in t.items()}),
    "rows of other videos": lambda path: edit(path, lambda t: None, rows=[3, 4, 11, 21]),
    "more rows than features": lambda path: edit(path, lambda t: None, rows=[3, 4, 11, 20, 21]),
    "no tensor at all": lambda path: save_file({}, path, metadata(path)),
    "a lacking tensor": lambda path: edit(path, lambda t: {"keys": t["keys"]}),
    "an unknown tensor": lambda path: edit(path, lambda t: t | {"more": t["keys"] + 0}),
    "another shape": lambda path: edit(path, lambda t: {n: x.flatten(1) for n, x in t.items()}),
    "swapped axes": lambda path: edit(path, lambda t: {n: x.mT.contiguous() for n, x in t.items()}),
    "integers": lambda path: edit(path, lambda t: {n: x.int() for n, x in t.items()}),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bank_is_noticed(tmp_path: Path, damage: str) -> None:
    bank, path = full(), tmp_path / "kept.safetensors"
    bank.save(path, "mark")
    DAMAGES[damage](path)
    with pytest.raises(DamagedBankError, match=r"kept\.safetensors is (damaged|not a complete bank)"):
        FeatureBank.load(path, "mark")
    bank.save(path, "mark")
    assert FeatureBank.load(path, "mark") is not None


def test_a_damaged_bank_is_made_again_and_old_ones_are_named(
    actions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep = {"bank_dir": str(tmp_path / "banks")}
    first = run_test(tmp_path / "1", module(**keep), data(actions))
    (path,) = (tmp_path / "banks").iterdir()
    zero_some_bytes(path)
    (tmp_path / "banks" / "0123").mkdir()
    (tmp_path / "banks" / "0123" / "bank.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"damaged.*the videos are encoded again"), caplog.at_level("INFO"):
        second = run_test(tmp_path / "2", module(**keep), data(actions))
    assert second["per_episode"] == first["per_episode"]
    assert "1 banks of version 0.1" in caplog.text
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        mark = json.loads(metadata(path)["bank"])["fingerprint"]
        assert FeatureBank.load(path, mark) is not None


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
    """The same rows of other clips: cropped differently here, which the module cannot see from the rows."""
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
    "matching": "chamfer", "matching_options": {"tuple_size": 2},
}  # fmt: skip


def test_every_option_of_the_heads_that_changes_features_is_in_the_fingerprint() -> None:
    """A new option of the head fails this test until it has another value in `OTHER_OPTIONS`."""
    assert OTHER_OPTIONS.keys() == signature(STRMHead).parameters.keys() - {"dim"}
    maps, usual = torch.randn(2, 4, 6, 8, 8), {"backbone": "test", "num_frames": 4, "match_dim": 8}
    pooled = STRMHead(6, num_frames=4, match_dim=8).pool(maps)
    for name, value in OTHER_OPTIONS.items():
        options = usual | {name: value}
        assert feature_options(options, pooled=False) != feature_options(usual, pooled=False)
        if name == "matching_options":  # which trm has not
            options["matching"] = OTHER_OPTIONS["matching"]
        if name != "num_frames":  # the fingerprint has that of the data module
            head = STRMHead(6, **{key: option for key, option in options.items() if key != "backbone"})
            found = head.pool(maps)
            alike = found.grid.shape == pooled.grid.shape and torch.equal(found.grid, pooled.grid)
            assert alike == (feature_options(options, pooled=True) == feature_options(usual, pooled=True)), name


def test_the_method_that_encodes_is_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def of(name: str, *, pooled: bool = False) -> dict[str, Any]:
        return feature_options({"backbone": "test", "matching": name}, pooled=pooled)

    before = of("bi_mhm")
    monkeypatch.setattr(BiMHM, "version", 2)
    assert of("bi_mhm") != before
    assert of("bi_mhm", pooled=True) == of("otam", pooled=True)  # maps are the same for all methods
    assert before["matching_source"] == ""

    found = []
    for serial, text in enumerate(("", "  # another source")):
        path = tmp_path / f"mine{serial}.py"
        path.write_text(f"from strm_lightning.models import Matching{text}\n\n\nclass Mine(Matching):\n    pass\n")
        spec = spec_from_file_location("mine", path)
        assert spec is not None
        assert spec.loader is not None
        file = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "mine", file)
        spec.loader.exec_module(file)
        monkeypatch.setattr("strm_lightning.models.matching.base._registry", {})
        register_matching("mine")(file.Mine)
        found.append(of("mine"))
    assert len(found[0]["matching_source"]) == 64
    assert found[0] != found[1]
    assert {**found[0], "matching_source": ""} == {**found[1], "matching_source": ""}


def test_only_videos_of_the_coming_episodes_are_encoded(actions: Path, tmp_path: Path) -> None:
    run, model, episodes = trainer(tmp_path, limit_test_batches=1), module(), data(actions)
    seen: list[int] = []
    encode = model.model.encode
    model.model.encode = lambda clips: seen.append(len(clips)) or encode(clips)
    run.test(model, datamodule=episodes, verbose=False)
    assert sum(seen) == len(coming_rows(run, "test")) < 18


def test_maps_are_kept_too() -> None:
    bank = FeatureBank([0])
    maps = PooledMaps(grid=torch.randn(1, 2, 4, 3), mean=torch.randn(1, 2, 3))
    bank.put(torch.tensor([[0, 0]]), vars(maps))
    torch.testing.assert_close(bank.get(torch.tensor([0])), vars(maps))
