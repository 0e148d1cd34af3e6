"""A test under a stock Trainer: bank against episodes, sweeps, what is written down."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from strm_lightning import EpisodeDataModule
from strm_lightning.cli.main import main
from strm_lightning.evaluation.results_file import load_results
from tests.test_module import SPLIT, data, module, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
]


class Logits(L.Callback):
    """Keeps the logits of every test episode."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        compute = pl_module._logits

        def record(episode: Any) -> Any:
            logits = compute(episode)
            self.seen += list(zip(episode.index.tolist(), logits.trm, logits.qc, strict=True))
            return logits

        pl_module._logits = record


def run_test(folder: Path, model: L.LightningModule, episodes: L.LightningDataModule, **options: Any) -> dict[str, Any]:
    trainer(folder, **options).test(model, datamodule=episodes, verbose=False)
    return load_results(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"bank_limit_gb": 1e-9},  # a mapped file
        {"variant": "official", "tuple_sizes": (2, 3), "center_clip": True},
        {"freeze_backbone": True, "bank_dir": "banks"},
    ],
)
def test_the_bank_gives_the_numbers_of_encoding_each_episode_anew(
    actions: Path, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, seen = {}, {}
    for way in ("bank", "episodes"):
        witness = Logits()
        episodes = data(actions, evaluation=way, way=3, shot=2, test_episodes=12)
        found[way] = run_test(tmp_path / way, module(**options), episodes, callbacks=[witness])
        seen[way] = sorted(witness.seen, key=lambda item: item[0])[:12]
    assert found["bank"]["per_episode"] == found["episodes"]["per_episode"]
    assert found["bank"]["card"] == found["episodes"]["card"]
    for bank, anew in zip(seen["bank"], seen["episodes"], strict=True):
        torch.testing.assert_close(bank[1:], anew[1:], rtol=1e-4, atol=1e-4)


def test_results_say_what_was_tested(actions: Path, tmp_path: Path) -> None:
    model = module(normalize=False)
    found = run_test(tmp_path, model, data(actions, eval_query_per_class=1, seed=5, frame_policy="release"))
    assert model.results is not None
    assert found["accuracy"] == model.results.accuracy == pytest.approx(np.mean(found["per_episode"]["accuracy"]))
    assert found["per_episode"]["seed"][3] == "5/test/0/3"
    assert len(found["per_episode"]["accuracy"]) == found["episodes"] == 9
    assert set(found["per_class"]) <= {"fall", "leap", "sink"} == set(found["confusion"]["classes"])
    assert min(found["timing"]["encoding_s"], found["timing"]["matching_s"]) > 0
    assert found["timing"]["device"].startswith("cpu, ")
    assert found["timing"]["processes"] == 1
    protocol = found["card"]["protocol"]
    expected = {"stage": "test", "way": 2, "shot": 1, "query_per_class": 1, "episodes": 9, "seed": 5, "num_frames": 4}
    assert expected.items() <= protocol.items()
    assert protocol["crop"] == "32 x 32, central"
    assert protocol["resize"] == "short side to 37"
    assert protocol["frame_policy"].startswith("release")
    assert found["card"]["data"]["videos"] == 18
    assert found["card"]["model"]["normalisation"] == {"mean": [0, 0, 0], "std": [1, 1, 1]}
    assert found["card"]["model"]["variant"] == "paper"
    assert found["card"]["model"]["precision"] == "32-true"
    assert found["card"]["checkpoint"]["chosen_on"] == "none"
    assert {"torch", "strm-lightning", "python"} <= found["card"]["versions"].keys()
    assert [path.name for path in tmp_path.glob("*")] == ["results.json"]


@pytest.mark.filterwarnings("ignore::strm_lightning.data.video_sets.DataWarning")
def test_videos_that_are_gone_are_named_on_the_card(actions: Path, tmp_path: Path) -> None:
    shutil.copytree(actions, root := tmp_path / "clips")
    (root / "fall" / "1.mp4").write_bytes(b"")
    split = {"test": ["fall", "sink", "leap"]}
    episodes = EpisodeDataModule(
        str(root), split, way=2, shot=1, query_per_class=2, num_frames=4, image_size=32, test_episodes=3, num_workers=0
    )
    episodes.setup("test")
    episodes.videos["test"] = replace(episodes.videos["test"], missing=("sink/9",))  # as list files would name it
    found = run_test(tmp_path, module(), episodes)["card"]["data"]
    assert found["missing"] == ["sink/9"]
    assert found["unreadable"] == ["fall/1"]
    assert found["videos"] == 17


def test_a_sweep_gives_the_numbers_of_single_tests(actions: Path, tmp_path: Path) -> None:
    model = module()
    found = run_test(tmp_path / "sweep", model, data(actions, shot=2, test_shots=[1, 2, 3], test_ways=[2, 3]))
    rows = {(row["way"], row["shot"]): row for row in found["sweep"]}
    assert list(rows) == [(2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 3)]
    assert rows[2, 2]["accuracy"] == found["accuracy"]
    for way, shot in ((3, 1), (2, 3), (2, 2)):
        alone = run_test(tmp_path / f"{way}-{shot}", model, data(actions, way=way, shot=shot))
        assert alone["accuracy"] == rows[way, shot]["accuracy"]
        assert alone["per_episode"]["accuracy"] == rows[way, shot]["per_episode"]
        assert alone["sweep"] == []


def test_a_sweep_that_the_videos_cannot_give_is_refused(actions: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"class 'fall' has 6 clips.*2-way 5-shot with 2 queries a class needs 7"):
        run_test(tmp_path, module(), data(actions, test_shots=[1, 5]))
    with pytest.raises(ValueError, match=r"4-way 1-shot .* needs 4 classes; the test split has 3"):
        run_test(tmp_path, module(), data(actions, test_ways=[4]))


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_card_says_which_split_chose_the_checkpoint(actions: Path, tmp_path: Path, split: str) -> None:
    saver = ModelCheckpoint(tmp_path, monitor="val/accuracy", mode="max", save_last=True, filename="best")
    episodes, model = data(actions, train_episodes=2, select_on=split, flip=False), module()
    run = trainer(tmp_path, max_epochs=1, callbacks=[saver])
    run.fit(model, datamodule=episodes)
    validated = {name for name, videos in episodes.videos.items() if set(videos.class_names) & {"fall", "leap"}}
    assert validated == ({"val", "test"} if split == "test" else {"test"})
    chosen = {}
    for name in ("best", "last"):
        run.test(model, datamodule=episodes, ckpt_path=tmp_path / f"{name}.ckpt", verbose=False)
        card = json.loads((tmp_path / "results.json").read_text())["card"]["checkpoint"]
        chosen[name] = card["chosen_on"]
        assert card["path"] == str(tmp_path / f"{name}.ckpt")
        assert card["training"]["flip"] is False
    assert chosen == {"best": split, "last": "none"}


@pytest.mark.filterwarnings("ignore:.*dirpath has changed.*")
def test_the_command_line_tests_a_checkpoint_from_a_kept_bank(
    actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    options = (
        f"--data.root={actions} --data.way=2 --data.shot=1 --data.query_per_class=2 --data.num_frames=4 "
        "--data.image_size=32 --data.train_episodes=2 --data.val_episodes=3 --data.test_episodes=6 "
        "--data.num_workers=0 --model.backbone=test_resnet --model.pretrained=false --model.match_dim=8 "
        "--trainer.max_epochs=1 --trainer.accelerator=cpu"
    )
    words = [*options.split(), "--data.split", json.dumps(SPLIT)]

    def strm(*arguments: str, last: tuple[str, ...] = ()) -> str:
        monkeypatch.setattr("sys.argv", ["strm", *arguments, *words, *last])
        main()
        return capsys.readouterr().out

    strm("fit", "--test_after_fit=false")
    test = ("test", "--ckpt_path=runs/version_0/checkpoints/best.ckpt", "--model.bank_dir=banks")
    first, second = (strm(*test, f"--data.test_shots={shots}") for shots in ("[1]", "[1,2,3]"))
    one, other = (load_results(tmp_path / "runs" / f"version_{n}") for n in (1, 2))
    assert one["accuracy"] == other["accuracy"]
    assert one["card"]["checkpoint"]["chosen_on"] == "val"
    assert "2-way 3-shot" in second
    assert "2-way 3-shot" not in first
    (kept,) = (tmp_path / "banks").iterdir()
    assert kept.stat().st_mtime_ns < (tmp_path / "runs/version_1/results.json").stat().st_mtime_ns

    shutil.copytree(actions, other_root := tmp_path / "another set")
    printed = strm("test", test[1], "--model.controls=true", last=(f"--data.root={other_root}",))
    assert f"trained on       {actions}; tested on {other_root}" in printed
    assert "over clips" in printed
    assert "queries reversed" in printed
    card = load_results(tmp_path / "runs/version_3")["card"]
    assert card["checkpoint"]["trained_on"] == str(actions)
    assert one["card"]["checkpoint"]["trained_on"] == "training classes of the same split"
    assert isinstance(card["checkpoint"]["seed"], int)
