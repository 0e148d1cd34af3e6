"""strm export: a folder of ONNX that predicts the same without torch."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from strm_lightning.classifier import FewShotClassifier
from strm_lightning.classifier.clips import ClipConfig
from strm_lightning.classifier.export import agreement, bundle, export_classifier, graphs, parity, quantize
from strm_lightning.classifier.export.predict import Classifier
from strm_lightning.classifier.support import EncodedClip, SupportSet
from strm_lightning.cli.main import main
from strm_lightning.data.transforms import ClipTransform
from strm_lightning.errors import InputError, MissingPackageError
from strm_lightning.models import STRM
from strm_lightning.models.enrichment.pooling import pool_maps
from tests.classifier.conftest import HOW, bare_model, make_model, moving, write_video

MOTIONS = ("left", "right", "up")
WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "torchvision", "strm_lightning"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(autouse=True, scope="module")
def _no_type_checks() -> Iterator[None]:
    """A size is no int but a symbol while torch exports."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files ``examples/CLASS/SERIAL.mp4`` and ``queries/CLASS.mp4``; frames of 80 x 72 pixels are resized."""
    root = tmp_path_factory.mktemp("videos")
    for motion in MOTIONS:
        for seed in range(3):
            frames = moving(motion, seed, height=72, width=80)
            write_video(root / "examples" / motion / f"{seed}.mp4", frames)
        write_video(root / "queries" / f"{motion}.mp4", moving(motion, 7, height=72, width=80))
    return root


def examples(videos: Path, *shots: int) -> dict[str, list[str]]:
    return {
        motion: [str(videos / "examples" / motion / f"{seed}.mp4") for seed in range(count)]
        for motion, count in zip(MOTIONS, shots, strict=True)
    }


def run_program(folder: Path, *words: object) -> list[dict[str, object]]:
    """Run predict.py in a process that cannot import torch."""
    words = (sys.executable, "-W", "error", "-c", WITHOUT_TORCH, folder / "predict.py", "--json", *words)
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


KINDS = {
    "auto, one shot": (lambda: bare_model("auto"), (1, 1, 1)),
    "auto, several": (lambda: bare_model("auto", mirror=True), (3, 3, 3)),
    "auto, uneven": (lambda: bare_model("auto"), (3, 2, 1)),
    "patches": (lambda: bare_model("patches"), (3, 2, 1)),
    "ridge": (lambda: bare_model("ridge"), (3, 2, 1)),
    "trm with QC": (lambda: make_model(tuple_sizes=(1, 2), center_clip=True, patch_pooling="layout"), (3, 2, 1)),
}


@pytest.fixture(scope="module")
def encodings() -> dict[str, bytes]:
    return {}


@pytest.fixture
def _encode_once(encodings: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert the encoding of each method once; its conversion takes ten seconds."""
    real = graphs.export_encoding

    def export(model: STRM, image_size: int, path: Path) -> None:
        name = model.head.matching_name
        if name in encodings:
            path.write_bytes(encodings[name])
        else:
            real(model, image_size, path)
            encodings[name] = path.read_bytes()

    monkeypatch.setattr(graphs, "export_encoding", export)


@pytest.mark.usefixtures("_encode_once")
@pytest.mark.parametrize("kind", KINDS)
def test_the_program_predicts_the_same_without_torch(kind: str, videos: Path, tmp_path: Path) -> None:
    build, shots = KINDS[kind]
    classifier = FewShotClassifier(build(), HOW).fit(examples(videos, *shots))
    found = export_classifier(classifier, tmp_path / "out")
    assert found.drawn == 4
    assert found.left_out == (0 if max(shots) == 1 else sum(n for n in shots if n > 1))
    assert found.difference < 3e-4  # of float32; it depends on the processor
    queries = sorted(str(path) for path in (videos / "queries").iterdir())
    for predicted, expected in zip(
        run_program(tmp_path / "out", *queries), classifier.predict_many(queries), strict=True
    ):
        assert predicted["label"] == expected.label
        assert predicted["probabilities"] == pytest.approx(dict(expected.probabilities), abs=3e-4)
    # The graph takes other numbers of classes, clips and queries.
    more = SupportSet(classifier.model)
    for name, paths in examples(videos, *shots[::-1]).items():
        for i in range(2):
            more.add(f"{name} {i}", [classifier.encode_one(path)[0] for path in paths])
    arrays, (columns,) = graphs.example_arrays(more)
    clips = [classifier.encode_one(path)[0] for path in queries]
    encoded = {name: torch.stack([clip.features[name] for clip in clips]) for name in clips[0].features}
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "match.onnx"))
    inputs = {f"0/{graphs.QUERY}{name}": tensor.numpy() for name, tensor in encoded.items()} | arrays
    (logits,) = session.run(None, {put.name: inputs[f"0/{put.name}"] for put in session.get_inputs()})
    expected = more.match(encoded).combined(classifier.qc_weight)[:, columns].numpy()
    assert logits.shape == (3, 6)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_without_examples_takes_them_later(videos: Path, tmp_path: Path) -> None:
    classifier = FewShotClassifier(make_model(), HOW)
    assert export_classifier(classifier, tmp_path / "out").drawn == 4
    assert not (tmp_path / "out" / "examples.npz").exists()
    classifier.temperature = 1.0
    classifier.fit({path.name: sorted(path.iterdir()) for path in (videos / "examples").iterdir()})
    query = videos / "queries" / "up.mp4"
    (found,) = run_program(tmp_path / "out", query, "--examples", videos / "examples")
    assert found["probabilities"] == pytest.approx(dict(classifier.predict(query).probabilities), abs=1e-4)
    with pytest.raises(InputError, match="'auto' is fitted to the examples before the export: give examples"):
        export_classifier(FewShotClassifier(bare_model("auto"), HOW), tmp_path / "no")
    with pytest.raises(InputError, match="threshold 'fit' is fitted to the examples"):
        export_classifier(FewShotClassifier(make_model(), HOW, threshold="fit"), tmp_path / "no")


@pytest.mark.parametrize("size", [(72, 80), (50, 64), (64, 64), (36, 100), (301, 203)])
@pytest.mark.parametrize(("short", "crop"), [(64, 64), (73, 64), (160, 128)])
def test_the_resize_is_that_of_the_package(size: tuple[int, int], short: int, crop: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    runner = Classifier.__new__(Classifier)
    runner.config = {"preprocessing": {"short_side": short, "image_size": crop}}
    found = np.stack([runner.resize(image) for image in frames]).transpose(0, 3, 1, 2)
    expected = ClipTransform(crop, short, flip=False)(torch.from_numpy(frames), None).numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("policy", ["segments", "release"])
@pytest.mark.parametrize("count", [1, 2, 4, 5, 23])
def test_the_program_reads_the_frames_of_the_package(policy: str, count: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving("left", frames=count, height=72, width=80))
    how = ClipConfig(num_frames=4, image_size=64, frame_policy=policy)
    _, pixels = FewShotClassifier(bare_model(), how).encode_one(path)
    runner = Classifier.__new__(Classifier)
    runner.config = {"preprocessing": vars(how) | {"short_side": how.transform.short_side}}
    np.testing.assert_allclose(runner.read_clip(path).astype(int), pixels.numpy(), atol=1)


@pytest.mark.parametrize("size", [7, 4, 3, 8])
def test_maps_that_are_no_multiple_of_the_grid(size: int, tmp_path: Path) -> None:
    class Pool(torch.nn.Module):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            return pool_maps(maps, 4).grid

    maps = torch.randn(2, 3, 5, size, size)
    graphs.export_module(
        Pool().eval(), {"maps": maps}, ({0: torch.export.Dim("clips")},), ["grid"], tmp_path / "pool.onnx", "pool"
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "pool.onnx"))
    maps = torch.randn(3, 3, 5, size, size)
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"maps": maps.numpy()})[0]), pool_maps(maps, 4).grid)


def transformer() -> STRM:
    return STRM("test_vit", pretrained=False, num_frames=4, matching="patches").eval()


@pytest.fixture
def no_graphs(monkeypatch: pytest.MonkeyPatch, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Write graphs once; the tests below change something else."""
    made = tmp_path_factory.getbasetemp() / "graphs of patches"
    if not made.is_dir():
        export_classifier(FewShotClassifier(bare_model(), HOW).fit(examples(videos, 2, 2, 2)), made)

    def copy(name: str) -> Callable[..., None]:
        return lambda *words, **_: next(w for w in words if isinstance(w, Path)).write_bytes((made / name).read_bytes())

    monkeypatch.setattr(graphs, "export_encoding", copy("encode.onnx"))
    monkeypatch.setattr(graphs, "export_matching", copy("match.onnx"))


@pytest.mark.usefixtures("no_graphs")
def test_nothing_is_written_if_predictions_differ(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = FewShotClassifier(bare_model(), HOW).fit(examples(videos, 2, 2, 2))
    real = Classifier.logits
    monkeypatch.setattr(Classifier, "logits", lambda self, query: -real(self, query))
    with pytest.raises(InputError, match="the export is not written: its prediction for"):
        export_classifier(classifier, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_graphs")
def test_examples_and_pixels_are_part_of_the_check(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = FewShotClassifier(bare_model(), HOW).fit(examples(videos, 2, 2, 2))
    check = [videos / "queries" / "up.mp4", videos / "examples" / "up" / "0.mp4"]
    assert export_classifier(classifier, tmp_path / "out", check=check).videos == 1  # the example is skipped
    with pytest.raises(InputError, match="all videos are among the examples"):
        export_classifier(classifier, tmp_path / "no", check=check[1:])
    monkeypatch.setattr(Classifier, "resize", lambda self, image: image[-64:, -64:])
    with pytest.raises(InputError, match=r"its prediction for .*up\.mp4 differs"):
        export_classifier(classifier, tmp_path / "no", check=check)


@pytest.mark.usefixtures("no_graphs")
def test_the_command(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, options = tmp_path / "a.safetensors", {"temperature": 0.5, "threshold": 0.2}
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    from tests.classifier.conftest import save_weights

    save_weights(bare_model().backbone.net, weights)
    own = {"backbone": "test_resnet", "weights": weights, "num_frames": 4, "image_size": 64, "matching": "patches"}
    FewShotClassifier.from_backbone(**own, device="cpu", **options).fit(examples(videos, 2, 2, 2)).save(saved)
    main(["export", f"--support={saved}", str(tmp_path / "out")])
    assert "the same labels as PyTorch on 6 left-out examples, 4 drawn clips" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (about["temperature"], about["min_probability"], about["labels"]) == (0.5, 0.2, sorted(MOTIONS))
    assert about["preprocessing"]["short_side"] == 73
    main(["export", f"--support={saved}", f"--check={videos / 'queries'}", "--int8", str(tmp_path / "int8")])
    assert "int8: int8: 0 of 1 labels differ from PyTorch's; " in capsys.readouterr().out
    assert json.loads((tmp_path / "int8" / "model.json").read_text())["encoding"] == "int8"
    for words, problem in {
        (
            f"--support={saved}",
            "--int8",
            str(tmp_path / "new"),
        ): "give --check, a folder of 2 or more videos, or --supp",
        (f"--support={saved}", str(tmp_path / "out")): "out: is not empty; give a new folder",
        (str(tmp_path / "new"),): "nothing to export: give --support",
        (f"--support={saved}", f"--check={tmp_path / 'out'}", str(tmp_path / "new")): "the folder contains no video",
    }.items():
        with pytest.raises(SystemExit):
            main(["export", *words])
        assert problem in capsys.readouterr().err


@pytest.mark.usefixtures("no_graphs")
def test_int8_predicts_the_same_labels(videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    classifier = FewShotClassifier(bare_model(), HOW).fit(examples(videos, 3, 3, 3))
    export_classifier(classifier, tmp_path / "float")
    handlers, steps = list(logging.root.handlers), []
    found = export_classifier(classifier, tmp_path / "out", int8=True, on_step=steps.append)
    assert capfd.readouterr() == ("", "")  # nothing from onnxruntime
    assert logging.root.handlers == handlers
    assert steps[-3:] == ["comparing with PyTorch", "converting the encoding to int8", "comparing int8 with PyTorch"]
    assert found.left_out == 9
    assert found.difference < 3e-4
    int8 = found.int8
    assert int8 is not None
    assert (int8.compared, int8.different) == (3, 0)  # two of three clips of each class are measured
    assert 1e-4 < int8.difference < 0.2
    sizes = [(tmp_path / name / "encode.onnx").stat().st_size for name in ("out", "float")]
    assert sizes == [int8.size, int8.float_size]
    assert sizes[0] < 0.5 * sizes[1]
    assert str(found).startswith("int8: 0 of 3 labels differ from PyTorch's; ")
    about = [json.loads((tmp_path / name / "model.json").read_text())["encoding"] for name in ("out", "float")]
    assert about == ["int8", "float32"]
    graph = onnx.load(tmp_path / "out" / "encode.onnx").graph
    kinds = {weight.data_type for weight in graph.initializer if len(weight.dims) == 4}
    assert kinds == {onnx.TensorProto.INT8}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in (tmp_path / "float").iterdir()
    }
    queries = sorted(str(path) for path in (videos / "queries").iterdir())
    predicted = run_program(tmp_path / "out", *queries)
    for row, expected in zip(predicted, classifier.predict_many(queries), strict=True):
        assert row["label"] == expected.label
        assert row["probabilities"] == pytest.approx(dict(expected.probabilities), abs=0.1)


@pytest.mark.usefixtures("no_graphs")
def test_int8_is_not_written_if_labels_differ(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = FewShotClassifier(bare_model(), HOW).fit(examples(videos, 3, 3, 3))
    real, logits = quantize.quantize_encoding, Classifier.logits

    def wrong(path: Path, clips: Iterable[np.ndarray]) -> None:
        real(path, clips)
        monkeypatch.setattr(Classifier, "logits", lambda self, query: -logits(self, query))

    monkeypatch.setattr(quantize, "quantize_encoding", wrong)
    with pytest.raises(InputError, match=r"with int8, \d of 3 labels differ from PyTorch's \(at most 5% may\)"):
        export_classifier(classifier, tmp_path / "out", int8=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_graphs")
def test_int8_needs_videos(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = FewShotClassifier(bare_model(), HOW).fit(examples(videos, 2, 2, 2))
    for clip in (clip for clips in several.support.clips.values() for clip in clips):
        clip.stored = True  # as from a file of examples
    queries = sorted((videos / "queries").iterdir())
    found = export_classifier(several, tmp_path / "out", int8=True, check=queries).int8
    assert found is not None
    assert found.compared == 1  # two of three are measured
    single = FewShotClassifier(bare_model(), HOW).fit(examples(videos, 1, 1, 1))
    monkeypatch.setattr(graphs, "export_encoding", lambda *_: pytest.fail("the check comes before long work"))
    for classifier, check, problem in (
        (several, [], "int8: needs videos, to measure the ranges of values on, .*: give --check"),
        (several, queries[:1], "give --check, a folder of 2 or more videos"),
        (single, [], "int8: needs videos, to compare its labels on, and no class has 2 examples: give --check"),
        (FewShotClassifier(bare_model(), HOW), [], "int8: needs examples, to compare its labels on: give --support"),
        (
            FewShotClassifier(transformer(), ClipConfig(num_frames=4, image_size=32)).fit(examples(videos, 2, 2, 2)),
            [],
            r"only convolutions are converted, and \d+% of the weights of 'test_vit' are in convolutions",
        ),
    ):
        with pytest.raises(InputError, match=problem):
            export_classifier(classifier, tmp_path / "no", int8=True, check=check)
    monkeypatch.setattr(quantize, "LARGEST_FILE", 1000)
    with pytest.raises(InputError, match=r"int8: the model has .* GB"):
        export_classifier(several, tmp_path / "no", int8=True, check=queries)


def test_int8_clips_are_of_all_classes_and_used_once(videos: Path) -> None:
    support = SupportSet(bare_model())
    blank = graphs.blank_clip(support.model)
    folder = videos / "examples" / "up"
    for label in "abcdefghij":
        support.add(label, [EncodedClip(str(folder), f"{label}{k}", torch.empty(0), dict(blank)) for k in range(5)])
    chosen = agreement.choose_clips(support, [])
    assert len(chosen.measured) == quantize.CALIBRATION_CLIPS
    assert [k for c, k in chosen.left_out if c == 9] == [1, 2, 3, 4]  # one of the last class, two of the first
    assert [k for c, k in chosen.left_out if c == 0] == [2, 3, 4]
    with_check = agreement.choose_clips(support, ["x.mp4"])
    assert (len(with_check.measured), with_check.videos, with_check.left_out) == (16, ["x.mp4"], [])
    for clip in (clip for clips in support.clips.values() for clip in clips):
        clip.stored = True
    names = [f"{i}.mp4" for i in range(99)]
    chosen = agreement.choose_clips(support, names)
    assert len(chosen.measured) <= quantize.CALIBRATION_CLIPS
    assert int(Path(str(chosen.measured[-1])).stem) > 80  # spread over the whole folder
    assert sorted([*chosen.measured, *chosen.videos]) == sorted(names)


def test_missing_packages_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(graphs, "_MODULES", ("onnx", "not_installed"))
    with pytest.raises(MissingPackageError, match=r'export needs not_installed: .* pip install "\.\[export\]"'):
        export_classifier(FewShotClassifier(bare_model(), HOW), tmp_path / "out")


def test_what_cannot_be_converted_is_one_line(tmp_path: Path) -> None:
    class Solve(torch.nn.Module):
        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigh(a)[0]

    with pytest.raises(InputError, match="matching 'mine' cannot be converted to ONNX: No ONNX function found"):
        graphs.export_module(Solve().eval(), {"a": torch.eye(3)}, ({},), ["b"], tmp_path / "a.onnx", "matching 'mine'")


def test_an_export_shows_its_progress(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (bundle, parity):
        monkeypatch.setattr(module, "bar_options", lambda: {"mininterval": 0.0, "miniters": 1})
    classifier = FewShotClassifier(bare_model(), HOW).fit(examples(videos, 2, 2, 1))
    export_classifier(classifier, tmp_path / "out", progress=True)
    shown = capsys.readouterr().err
    assert "Converting to ONNX:" in shown
    assert "1/2" in shown
    assert "Comparing predictions: 100%" in shown
