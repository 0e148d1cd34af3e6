"""Examples in one file, refused with other weights."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from strm_lightning import FewShotClassifier
from strm_lightning.classifier.clips import ClipConfig
from strm_lightning.classifier.explain.picture import draw
from strm_lightning.errors import InputError, WriteError
from tests.classifier.conftest import HOW, make_model, moving, save_weights, write_video


def test_a_saved_classifier_predicts_the_same(classifier, examples, tmp_path: Path, count_encoded) -> None:
    path = tmp_path / "actions.safetensors"
    classifier.set_params(threshold=0.4).fit(examples).save(path)
    queries = [moving(motion, 30) for motion in ("left", "up")]
    expected = classifier.predict_many(queries)
    encoded = count_encoded()
    other = FewShotClassifier(classifier.model, HOW).load(path)
    assert count_encoded() == encoded
    assert other.predict_many(queries) == expected
    assert other.calibration_.min_probability == 0.4
    assert other.calibration_.temperature == pytest.approx(classifier.calibration_.temperature)
    theirs, mine = (c.explain(queries[0]).thumbnails["left"] for c in (other, classifier))
    np.testing.assert_array_equal(theirs, mine)
    encoded = count_encoded()
    other.add("down", moving("down"))
    assert count_encoded() == encoded + 1


def test_without_thumbnails_no_pixel_is_in_the_file(classifier, examples, tmp_path: Path) -> None:
    path = tmp_path / "actions.safetensors"
    classifier.fit(examples).save(path, thumbnails=False)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(classifier.support.clips["up"][0].features)
        assert {clip["label"] for clip in json.loads(file.metadata()["clips"])} == set(examples)
    other = FewShotClassifier(classifier.model, HOW).load(path)
    assert other.predict(moving("up", 3)) == classifier.predict(moving("up", 3))
    other.explain(moving("up", 3))


def test_other_weights_and_other_pixels_are_refused(examples, tmp_path: Path) -> None:
    path = tmp_path / "actions.safetensors"
    FewShotClassifier(make_model(0), HOW).fit(examples).save(path)
    with pytest.raises(ValueError, match=r"encoded with other weights or another matching \(fingerprint [0-9a-f]{8}"):
        FewShotClassifier(make_model(1), HOW).load(path)
    with pytest.raises(ValueError, match=r"its clips were made with .*'image_size': 64"):
        FewShotClassifier(make_model(0), ClipConfig(num_frames=4, image_size=96)).load(path)


def test_what_is_no_such_file_is_refused(trained, tmp_path: Path) -> None:
    classifier = FewShotClassifier(trained, HOW)
    with pytest.raises(FileNotFoundError, match="no such file"):
        classifier.load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        classifier.load(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="cannot be read"):
        classifier.load(tmp_path / "broken.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"not a file that FewShotClassifier\.save wrote"):
        classifier.load(tmp_path / "weights.safetensors")


def test_the_class_opens_the_backbone_that_the_file_names(examples, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    from strm_lightning.models import Backbone

    save_weights(Backbone("test_resnet", pretrained=False).net, weights)
    classifier = FewShotClassifier.from_backbone("test_resnet", weights=weights, num_frames=4, image_size=64)
    classifier.fit(examples).save(tmp_path / "actions.safetensors")
    other = FewShotClassifier.load(tmp_path / "actions.safetensors", jobs=2)
    assert other.jobs == 2
    named = FewShotClassifier.load(tmp_path / "actions.safetensors", threshold=0.99, temperature=3.0, device="cpu")
    assert (named.threshold, named.temperature) == (0.99, 3.0)
    assert other.predict(moving("up", 3)) == classifier.predict(moving("up", 3))
    FewShotClassifier(classifier.model, classifier.preprocessing).fit(examples).save(tmp_path / "nameless.safetensors")
    with pytest.raises(ValueError, match="names no checkpoint"):
        FewShotClassifier.load(tmp_path / "nameless.safetensors")


def test_options_of_load_take_precedence_over_the_file(classifier, examples, tmp_path: Path) -> None:
    path = tmp_path / "actions.safetensors"
    classifier.set_params(threshold=0.4, temperature=2.0).fit(examples).save(path)
    other = FewShotClassifier(classifier.model, HOW).load(path, threshold=0.99, jobs=2)
    assert (other.threshold, other.temperature, other.jobs) == (0.99, 2.0, 2)
    assert other.calibration_.min_probability == 0.99
    assert other.load(path, threshold=None).threshold is None
    expected = other.classes_.tolist(), other.get_params()
    with pytest.raises(ValueError, match=r"threshold 2\.0: give a probability"):
        other.remove("up").load(path, threshold=2.0)
    with pytest.raises(ValueError, match="no parameter 'shots'"):
        other.load(path, shots=3)
    assert (other.classes_.tolist(), other.get_params()) == (["left", "right"], expected[1])  # as before the errors


@pytest.fixture(scope="module")
def saved(trained, bare, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[FewShotClassifier, Path]]:
    """A classifier and its file of examples, for each kind of model."""
    folder, made = tmp_path_factory.mktemp("saved"), {}
    for kind, model in (("trained", trained), ("bare", bare)):
        classifier = FewShotClassifier(model, HOW)
        classifier.fit({motion: [moving(motion, seed) for seed in range(2)] for motion in ("left", "up")})
        classifier.save(folder / f"{kind}.safetensors")
        made[kind] = classifier, folder / f"{kind}.safetensors"
    return made


ABSENT = object()
GOOD_HOW = {"num_frames": 4, "image_size": 64, "short_side": 64, "frame_policy": "segments"}
WRONG_ABOUT = {
    "format": [ABSENT, None, 3, "strm-lightning examples 9"],
    "fingerprint": [ABSENT, None, 7, "", [], "0" * 32],
    "preprocessing": [
        *(ABSENT, None, [], {}, {"num_frames": 4}, {"shots": 1}),
        *(GOOD_HOW | change for change in ({"num_frames": -5}, {"num_frames": "4"}, {"image_size": 0}, {"fps": 3})),
        *(GOOD_HOW | change for change in ({"image_size": 10**12}, {"short_side": None}, {"short_side": True})),
        *(GOOD_HOW | change for change in ({"frame_policy": "best"}, {"frame_policy": []})),
    ],
    "clips": [
        *(ABSENT, None, 4, "x", {}, [], [None] * 4, [{}] * 4, [{"label": 1, "name": "a", "digest": "b"}] * 4),
        *([{"label": "a", "name": "b"}] * 4, [{"label": "a", "name": "b", "digest": "c"}] * 5),
    ],
    "source": [ABSENT, 3, "best.ckpt", [], {"path": None}, {"path": "a", "lr": 1}, {"backbone": 3}, {"url": "x"}],
    "temperature": [ABSENT, None, True, "auto", 0, -1, 10**400, float("nan"), float("inf"), [1], {}],
    "threshold": [ABSENT, False, "auto", -0.1, 1.5, float("nan"), [1], {}],
}
WRONG_TENSORS = {
    "integers": lambda t: t.int(),
    "half": lambda t: t.half(),
    "eighth": lambda t: t.float().to(torch.float8_e4m3fn),
    "double": lambda t: t.double(),
    "bytes": lambda t: torch.zeros(t.shape, dtype=torch.uint8),
    "nan": lambda t: torch.where(torch.arange(t.numel()).view(t.shape) == 3, torch.nan, t),
    "infinite": lambda t: t + torch.inf,
    "scalar": lambda t: t.flatten()[0].clone(),
    "flat": lambda t: t.flatten(),
    "fewer clips": lambda t: t[:-1].clone(),
    "more clips": lambda t: torch.cat([t, t[:1]]),
    "no clips": lambda t: t[:0].clone(),
    "fewer channels": lambda t: t[..., :-1].contiguous(),
    "swapped axes": lambda t: t.transpose(1, 2).contiguous(),
    "one axis more": lambda t: t[None].clone(),
}


def refused(classifier: FewShotClassifier, path: Path) -> None:
    """Loading fails with one line that names the file, and the examples stay as they are."""
    labels = classifier.classes_.tolist()
    with pytest.raises(InputError) as error:
        classifier.load(path)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600
    assert classifier.classes_.tolist() == labels


@pytest.mark.parametrize("kind", ["trained", "bare"])
def test_wrong_metadata_is_refused_in_one_line(kind: str, saved, tmp_path: Path) -> None:
    classifier, good = saved[kind]
    tensors = load_file(good)
    with safe_open(good, "pt") as file:
        about = file.metadata()
    path = tmp_path / "wrong.safetensors"
    for key, values in WRONG_ABOUT.items():
        for value in values:
            text = {key: json.dumps(value)} if value is not ABSENT else {}
            save_file(tensors, path, {name: other for name, other in about.items() if name != key} | text)
            refused(classifier, path)
    for text in ("", "{", "nul", "[" * 100_000):
        save_file(tensors, path, about | {"clips": text})
        refused(classifier, path)
    save_file(tensors, path, about)
    classifier.load(path)  # as it was written, it is taken


@pytest.mark.parametrize("kind", ["trained", "bare"])
def test_wrong_tensors_are_refused_in_one_line(kind: str, saved, tmp_path: Path) -> None:
    classifier, good = saved[kind]
    tensors, path = load_file(good), tmp_path / "wrong.safetensors"
    with safe_open(good, "pt") as file:
        about = file.metadata()
    for name, tensor in tensors.items():
        for change, wrong in WRONG_TENSORS.items():
            if name == "thumbnails" and change == "bytes":
                continue
            save_file(tensors | {name: wrong(tensor)}, path, about)
            refused(classifier, path)
        if name != "thumbnails":
            save_file({other: t for other, t in tensors.items() if other != name}, path, about)
            refused(classifier, path)
    save_file(tensors | {"extra": next(iter(tensors.values())).clone()}, path, about)
    refused(classifier, path)
    save_file({}, path, about)
    refused(classifier, path)


def test_a_damaged_header_is_refused_in_one_line_or_changes_nothing_that_matters(saved, tmp_path: Path) -> None:
    good = saved["trained"][1]
    classifier = FewShotClassifier(saved["trained"][0].model, HOW)
    data, path = good.read_bytes(), tmp_path / "damaged.safetensors"
    header = 8 + int.from_bytes(data[:8], "little")
    for end in (0, 1, 7, 8, 9, header // 2, header, header + 1, len(data) - 1):
        path.write_bytes(data[:end])
        refused(classifier, path)
    rng, survived = np.random.default_rng(0), 0
    for place in [*range(8), *rng.integers(8, header, 400).tolist()]:
        damaged = bytearray(data)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        message = ""
        try:
            classifier.load(path)  # a letter of a label or of a digest is another one
            survived += 1
        except InputError as error:
            message = str(error)
        assert len(message.splitlines()) <= 1
    assert survived < 300


def test_paths_of_the_users_clips_stay_out_of_the_file(bare, tmp_path: Path) -> None:
    home = tmp_path / "home of someone"
    clips = [write_video(home / day / "a.mp4", moving("up", i)) for i, day in enumerate(("monday", "tuesday"))]
    clips.append(write_video(home / "monday" / "b.mp4", moving("up", 5)))
    others = [write_video(home / "c.mp4", moving("left"))]
    classifier = FewShotClassifier(bare, HOW).fit({"up": clips, "left": others})
    path = tmp_path / "actions.safetensors"
    classifier.save(path)
    assert b"home of someone" not in path.read_bytes()
    other = FewShotClassifier(bare, HOW).load(path)
    assert [clip.name for clip in other.support.clips["up"]] == ["monday/a.mp4", "tuesday/a.mp4", "b.mp4"]
    other.save(tmp_path / "again.safetensors")
    assert FewShotClassifier(bare, HOW).load(tmp_path / "again.safetensors").classes_.tolist() == ["left", "up"]
    with pytest.raises(KeyError, match=r"no clip '/elsewhere/a\.mp4' in class 'up'"):
        other.remove("up", "/elsewhere/a.mp4")
    other.remove("up", clips[1]).remove("up", "b.mp4").remove("left", others[0])  # by path or by name
    assert [clip.name for clip in other.support.clips["up"]] == ["monday/a.mp4"]
    assert other.classes_.tolist() == ["up"]
    with pytest.raises(KeyError, match="no clip"):  # of clips that were encoded here, the whole path is known
        classifier.remove("up", "/elsewhere/" + str(clips[0]))


def test_a_full_disk_is_told_in_one_line_and_nothing_is_left(saved, tmp_path: Path) -> None:
    classifier, good = saved["bare"]
    explanation = classifier.explain(moving("up", 9))
    path = tmp_path / "actions.safetensors"
    path.write_bytes(good.read_bytes())
    with limit_file_size(20_000):
        with pytest.raises(WriteError, match=r"actions\.safetensors: cannot be written \(.*File too large"):
            classifier.save(path)
        for suffix in (".png", ".pdf", ".svg"):
            with pytest.raises(WriteError, match=rf"why\{suffix}: cannot be written \(File too large\)"):
                draw(explanation, tmp_path / f"why{suffix}")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == good.read_bytes()
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot be written"):
        classifier.save(tmp_path / "file" / "actions.safetensors")


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    """Let every file end at ``size`` bytes, as on a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_saving_sweeps_what_killed_saves_left(saved, tmp_path: Path) -> None:
    classifier, _ = saved["bare"]
    names = (".actions.safetensors.0123456789ab.part", ".why.png.0123456789ab.part", ".film.mp4.part", "old.part")
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".actions.safetensors.cba987654321.part").touch()  # of a save that may be still running
    classifier.save(tmp_path / "actions.safetensors")
    left = {".actions.safetensors.cba987654321.part", "actions.safetensors", ".film.mp4.part", "old.part"}
    assert {file.name for file in tmp_path.iterdir()} == left


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """As STRMModule and EpisodeDataModule write it, with options that are not of the model."""
    model = make_model(3, tuple_sizes=(2, 3))
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    options = {"backbone": "test_resnet", "num_frames": 4, "match_dim": 12, "proj_dim": 16, "tuple_sizes": [2, 3]}
    data = {"num_frames": 4, "image_size": 64, "short_side": 70, "frame_policy": "release", "way": 5, "flip": True}
    path = tmp_path / "best.ckpt"
    other = {"lr": 1e-3, "qc_weight": 0.3, "optimizer": "sgd", "pretrained": False, "weights": None}
    torch.save(
        {"state_dict": state, "hyper_parameters": {**options, **other}, "datamodule_hyper_parameters": data}, path
    )
    return path


def test_a_checkpoint_brings_its_model_and_its_preprocessing(checkpoint: Path, examples, tmp_path: Path) -> None:
    classifier = FewShotClassifier.from_checkpoint(checkpoint)
    assert classifier.preprocessing == ClipConfig(4, 64, 70, "release")
    assert classifier.qc_weight == 0.3
    twin = make_model(3, tuple_sizes=(2, 3))
    expected = FewShotClassifier(twin, classifier.preprocessing, qc_weight=0.3).fit(examples).predict(moving("up", 3))
    assert classifier.fit(examples).predict(moving("up", 3)) == expected
    assert FewShotClassifier.from_checkpoint(checkpoint, image_size=32).preprocessing.image_size == 32
    classifier.save(tmp_path / "actions.safetensors")
    assert FewShotClassifier.load(tmp_path / "actions.safetensors").predict(moving("up", 3)) == expected


def test_bad_checkpoints_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        FewShotClassifier.from_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        FewShotClassifier.from_checkpoint(tmp_path)
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read safely; it is damaged or cut off"):
        FewShotClassifier.from_checkpoint(broken)
    torch.save({"state_dict": {}}, broken)
    with pytest.raises(ValueError, match="not one of STRMModule"):
        FewShotClassifier.from_checkpoint(broken)
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["match_dim"] = 13
    torch.save(content, broken)
    with pytest.raises(ValueError, match="not those of the model that it describes"):
        FewShotClassifier.from_checkpoint(broken)
