"""strm classify --events: table, JSON, subtitles and a picture of the time line; and live sources."""

import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from strm_lightning.classifier.predictions import Prediction, WindowPrediction
from strm_lightning.cli.main import main
from strm_lightning.cli.subtitles import write_srt, write_vtt
from strm_lightning.models import Backbone
from tests.classifier.conftest import FPS, save_weights, write_examples, write_video
from tests.classifier.test_events import long_video, right


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("place")
    write_examples(root / "examples")
    write_video(root / "long.mp4", long_video()[0], FPS)
    torch.manual_seed(0)
    save_weights(Backbone("test_resnet", pretrained=False).net, root / "weights.safetensors")
    model = ["--backbone=test_resnet", f"--weights={root / 'weights.safetensors'}"]
    return ["classify", f"--support={root / 'examples'}", *model, str(root / "long.mp4")]


def test_events_with_subtitles_and_time_line(words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"a.{name}" for name in ("srt", "vtt", "svg")}
    main([*words, "--events", "--json", f"--srt={files['srt']}", f"--vtt={files['vtt']}", f"--timeline={files['svg']}"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [WindowPrediction(r["start"], r["end"], Prediction(r["label"], 1.0, {})) for r in rows]
    assert right(found, long_video()[1]) >= 4
    for name in ("srt", "vtt"):
        with av.open(str(files[name])) as container:  # FFmpeg's reader
            cues = [packet for packet in container.demux() if packet.size]
            assert [float(cue.pts * cue.time_base) for cue in cues] == pytest.approx([r["start"] for r in rows])
            assert [bytes(cue).decode().split()[0] for cue in cues] == [r["label"] for r in rows]
    ET.parse(files["svg"])


def test_subtitles_have_hours_and_escaped_text(tmp_path: Path) -> None:
    event = WindowPrediction(3725.25, 3727.0, Prediction("a <b> & c", 0.5, {}))
    write_srt(tmp_path / "a.srt", [event])
    write_vtt(tmp_path / "a.vtt", [event])
    assert (tmp_path / "a.srt").read_text() == "1\n01:02:05,250 --> 01:02:07,000\na <b> & c 50%\n"
    vtt = "WEBVTT\n\n01:02:05.250 --> 01:02:07.000\na &lt;b&gt; &amp; c 50%\n"
    assert (tmp_path / "a.vtt").read_text() == vtt


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--srt=a.srt"], "--srt needs --events"),
        (["--events", "--window=3"], "--events and --window exclude"),
        (["--events", "--timeline=a.txt"], "--timeline a.txt"),
        (["--length=2"], "--length needs --events"),
        (["--camera=0"], "--camera and --stream exclude videos"),
        (["--events", "--length=-1"], "length is -1"),
    ],
)
def test_wrong_options(words, extra: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*words, *extra])
    assert message in capsys.readouterr().err


def test_a_stream_from_the_command_line(words, capsys: pytest.CaptureFixture[str]) -> None:
    main([*words[:-1], f"--stream={words[-1]}", "--json"])  # 25 s at its own pace
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert all(row["latency"] >= 0 and row["frames_per_second"] > 0 for row in rows)
    assert f"{len(rows)} event" in err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("--camera=97", "camera 97: "),
        ("--stream=none.mp4", "none.mp4: cannot be opened (No such file or directory)"),
        ("--stream=tcp://127.0.0.1:9", "tcp://127.0.0.1:9: cannot be opened (Connection refused)"),
        ("--stream=nonsense://camera", "nonsense://camera: cannot be opened (Protocol not found)"),
    ],
)
def test_a_missing_source_is_reported_before_anything_is_encoded(
    words, source: str, message: str, capsys: pytest.CaptureFixture[str], count_encoded: Callable[[], int]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*words[:-1], source])
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert count_encoded() == 0


@pytest.mark.parametrize("extra", [["--events"], ["--window=2"], ["--events", "--srt=a.srt"]])
def test_a_broken_long_video_is_reported_before_anything_is_encoded(
    words,
    extra: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    count_encoded: Callable[[], int],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.mp4").write_bytes(b"no video")
    with pytest.raises(SystemExit, match="1"):
        main([*words[:-1], "broken.mp4", *extra])
    assert "broken.mp4: cannot be decoded" in capsys.readouterr().out
    assert count_encoded() == 0


@pytest.mark.parametrize("source", ["--events", "--stream=long.mp4"])
def test_examples_without_durations_are_reported_before_they_are_encoded(
    words,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    count_encoded: Callable[[], int],
) -> None:
    monkeypatch.chdir(tmp_path)
    for label in ("left", "right"):
        (tmp_path / "examples" / label / "0").mkdir(parents=True)
        for number in range(9):
            Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(tmp_path / f"examples/{label}/0/{number:05d}.png")
    shutil.copy(words[-1], "long.mp4")
    query = words[-1:] if source == "--events" else []
    with pytest.raises(SystemExit, match="2"):
        main([words[0], "--support=examples", *words[2:-1], *query, source])
    error = capsys.readouterr().err
    assert error.startswith("error: the examples are frames, whose durations are not known: give --length")
    assert error.count("\n") == 1
    assert count_encoded() == 0
