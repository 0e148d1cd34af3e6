"""A video backbone from files to labels: training, bank, test, card, classifier, explanation, windows."""

import json
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model

from strm_lightning import EpisodeDataModule, FewShotClassifier, STRMModule
from strm_lightning.classifier.clips import ClipConfig, windows
from strm_lightning.classifier.load_model import usual_clip
from strm_lightning.cli.main import main
from strm_lightning.data.checks.doctor import doctor
from strm_lightning.data.splits.split import published_classes
from strm_lightning.evaluation.fingerprint import bank_fingerprint, feature_options
from tests.test_module import SPLIT, trainer
from tests.test_module import pytestmark as pytestmark

CLIPS = {"num_frames": 16, "num_segments": 2, "frame_policy": "dense", "frame_stride": 1, "image_size": 16}
EPISODES = {"way": 2, "shot": 1, "query_per_class": 2, "num_workers": 0}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "r2plus1d.pth"
    torch.save(get_model("r2plus1d_18", weights=None).state_dict(), path)
    return path


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_from_files_to_labels(
    actions: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.chdir(tmp_path)
    options = {
        **{f"data.{name}": value for name, value in {**CLIPS, **EPISODES}.items()},
        "data.root": actions, "data.split": json.dumps(SPLIT), "data.train_episodes": 2, "data.val_episodes": 2,
        "data.test_episodes": 4, "model.backbone": "torchvision/r2plus1d_18", "model.weights": weights,
        "model.freeze_backbone": True, "model.match_dim": 8, "model.patch_grid": 2, "model.bank_dir": "banks",
        "trainer.max_epochs": 1, "trainer.accelerator": "cpu", "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": False,
    }  # fmt: skip
    monkeypatch.setattr("sys.argv", ["strm", "fit", *(f"--{name}={value}" for name, value in options.items())])
    main()
    (results,) = tmp_path.rglob("results.json")
    card = json.loads(results.read_text())["card"]
    assert card["protocol"]["frame_policy"] == "dense (2 runs, stride 1), its test choice"
    assert (card["protocol"]["num_frames"], card["model"]["num_segments"]) == (16, 2)
    assert "r2plus1d.pth" in card["model"]["pretrained_on"]  # also after the checkpoint, which names no file of weights
    (checkpoint,) = tmp_path.rglob("best.ckpt")
    results.unlink()
    capsys.readouterr()
    kept = {name: value for name, value in options.items() if name.startswith("data.") or name.endswith("bank_dir")}
    monkeypatch.setattr(
        "sys.argv",
        ["strm", "test", *(f"--{name}={value}" for name, value in kept.items()), "--ckpt_path", str(checkpoint)],
    )
    main()
    (again,) = tmp_path.rglob("results.json")
    assert json.loads(again.read_text())["card"]["model"]["num_segments"] == 2
    assert "pretrained on" not in capsys.readouterr().err  # the test classes are not those of Kinetics

    module = STRMModule.load_from_checkpoint(checkpoint)
    assert (module.model.num_frames, module.model.head.num_frames) == (16, 2)
    assert "r2plus1d.pth" in (module.model.backbone.pretrained_on or "")
    classifier = FewShotClassifier.from_checkpoint(checkpoint)
    assert (classifier.preprocessing.frame_policy, classifier.preprocessing.num_segments) == ("dense", 2)
    classifier.fit({name: [actions / name / f"{i}.mp4" for i in range(2)] for name in ("up", "down", "left")})
    found = classifier.predict(actions / "up" / "1.mp4")  # one of the examples
    assert found.label == "up"
    explained = classifier.explain(actions / "up" / "1.mp4")
    assert explained.frames.shape[0] == 2  # a frame for each time step
    assert explained.evidence["up"].frame_weights(0).shape == (2, 2)
    classifier.save(tmp_path / "examples.safetensors")
    again = FewShotClassifier.load(tmp_path / "examples.safetensors")
    assert again.predict(actions / "up" / "1.mp4").probabilities == pytest.approx(found.probabilities)


def test_a_video_model_without_training(actions: Path, weights: Path, tmp_path: Path) -> None:
    classifier = FewShotClassifier.from_backbone("torchvision/r2plus1d_18", weights=weights, image_size=16)
    assert classifier.preprocessing == ClipConfig(32, 16, num_segments=2, frame_policy="dense")
    assert usual_clip("torchvision/s3d")["image_size"] == 224
    classifier.fit({name: [actions / name / "0.mp4"] for name in ("up", "down")})
    found = classifier.predict(actions / "down" / "0.mp4")
    assert found.label == "down"
    classifier.save(tmp_path / "examples.safetensors")
    again = FewShotClassifier.load(tmp_path / "examples.safetensors")
    assert again.preprocessing == classifier.preprocessing
    assert again.predict(actions / "down" / "0.mp4").probabilities == pytest.approx(found.probabilities)


def test_windows_of_a_long_video_have_dense_runs() -> None:
    config = ClipConfig(num_frames=4, num_segments=2, frame_policy="dense", frame_stride=1, image_size=8)
    video = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 8, 8, 3)
    found = [clip[:, 0, 4, 4].tolist() for _, _, clip in windows(video, config, seconds=2.0, stride=1.0, fps=10.0)]
    assert found == [[t + 4, t + 5, t + 14, t + 15] for t in (0, 10, 20)]


def test_data_and_model_must_agree(actions: Path, tmp_path: Path) -> None:
    model = STRMModule("test_resnet", pretrained=False, num_frames=4, match_dim=8)
    for options, message in (
        ({"num_frames": 8}, r"8 frames \(data.num_frames\), the model takes 4"),
        ({"num_frames": 4, "num_segments": 2}, "num_segments 2 has no effect with backbone 'test_resnet'"),
    ):
        data = EpisodeDataModule(str(actions), SPLIT, **EPISODES, image_size=32, **options)
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path).validate(model, data)
    with pytest.raises(ValueError, match="frame_stride 3 has no effect with frame_policy 'segments'"):
        EpisodeDataModule(str(actions), frame_stride=3)
    with pytest.raises(ValueError, match="num_frames 8 is not a multiple of num_segments 3"):
        EpisodeDataModule(str(actions), num_segments=3)
    video = STRMModule(
        "torchvision/mc3_18", pretrained=False, num_frames=4, num_segments=2, match_dim=8, matching="patches"
    )
    data = EpisodeDataModule(
        str(actions), SPLIT, **EPISODES, num_frames=4, num_segments=4, frame_policy="dense", image_size=16
    )
    with pytest.raises(ValueError, match=r"4 segments \(data.num_segments\), the model takes 2"):
        trainer(tmp_path).test(video, data)


def test_stage_segments_and_stride_are_part_of_a_bank(actions: Path) -> None:
    def fingerprint(**options: object) -> str:
        data = EpisodeDataModule(str(actions), SPLIT, **EPISODES, num_frames=4, frame_policy="dense", **options)
        data.setup()
        return bank_fingerprint(data, "test", [0, 1], torch.nn.Identity(), {})

    assert len({fingerprint(), fingerprint(num_segments=2), fingerprint(frame_stride=1)}) == 3
    base = {"backbone": "resnet50"}
    for option in ({"backbone_stage": -2}, {"num_segments": 2}):
        for pooled in (True, False):
            assert feature_options(base | option | {"matching": "trm"}, pooled=pooled) != feature_options(
                base | {"matching": "trm"}, pooled=pooled
            )


def test_kinetics_weights_on_kinetics_classes_are_reported(actions: Path) -> None:
    data = EpisodeDataModule(str(actions), SPLIT, **EPISODES, num_frames=4, image_size=16)
    model = STRMModule("torchvision/mc3_18", pretrained=False, num_frames=4, matching="patches")
    data.setup()
    model._check_clips(data)  # without pretrained weights there is nothing to report
    model.model.backbone.pretrained_on = "Kinetics-400"
    model._check_clips(data)
    data.split = "kinetics100"
    with pytest.warns(UserWarning, match="pretrained on Kinetics-400: the weights have seen the test classes"):
        model._check_clips(data)


def test_the_doctor_warns_of_kinetics_weights_on_kinetics_classes(actions: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    for stage, names in published_classes("kinetics100").items():
        folder = tmp_path / "videos" / names[0]
        folder.mkdir(parents=True)
        (folder / f"{stage}.mp4").symlink_to(actions / "up" / "0.mp4")
        (lists / f"{stage}list01.txt").write_text(f"{names[0]}/{stage}\n")
    options = {"lists": str(lists), "way": 1, "shot": 1, "query_per_class": 0, "flip": False}
    warned = doctor(str(tmp_path / "videos"), "kinetics100", backbone="torchvision/r2plus1d_18", **options)
    (warning,) = warned.warnings
    assert warning.startswith("backbone torchvision/r2plus1d_18 has published weights from Kinetics-400: the weights")
    assert not doctor(str(tmp_path / "videos"), "kinetics100", backbone="resnet50.tv_in1k", **options).warnings
    assert not doctor(str(tmp_path / "videos"), "random", backbone="torchvision/r2plus1d_18", way=1).warnings
