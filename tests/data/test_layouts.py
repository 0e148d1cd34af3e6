"""One set of frames in every layout: the same names, the same pixels; and zips that mean harm."""

import io
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from strm_lightning.data.decode import image as images
from strm_lightning.data.decode import limits
from strm_lightning.data.decode.video import VideoError
from strm_lightning.data.detect import list_videos
from strm_lightning.data.sources import zip as zips
from strm_lightning.data.sources.base import VideoStore
from strm_lightning.data.video_sets import DataWarning, load_video_sets, open_store
from tests.data.clips import number_of, numbered_frame, write_frames, write_video, zip_folder


@pytest.fixture(scope="module")
def frames_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of two videos of 9 and 12 frames as JPEG files."""
    root = tmp_path_factory.mktemp("frames")
    for name in ("run", "Jump High", "sit"):
        for video, count in (("v1", 9), ("v2", 12)):
            write_frames(root / name / video, count)
    return root


def by_pillow(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("prefix", ["", "data/frames/"])
def test_a_zip_holds_what_its_folder_held(frames_root: Path, compression: int, prefix: str, tmp_path: Path) -> None:
    folder = open_store(frames_root)
    zipped = open_store(zip_folder(frames_root, tmp_path / "all.zip", compression, prefix))
    assert list_videos(frames_root).layout == "frames"
    assert list_videos(tmp_path).layout == list_videos(tmp_path / "all.zip").layout == "zip"
    assert zipped.videos == folder.videos == [f"{c}/{v}" for c in ("Jump High", "run", "sit") for v in ("v1", "v2")]
    np.testing.assert_array_equal(zipped.frame_counts, folder.frame_counts)
    for store in (folder, zipped, pickle.loads(pickle.dumps(zipped))):
        frames = store.read(3, [0, 0, 4, 11])
        assert [number_of(frame) for frame in frames.numpy()] == [0, 0, 4, 11]
        pillow = [by_pillow(frames_root / "run" / "v2" / f"{i + 1:08}.jpg") for i in (0, 0, 4, 11)]
        np.testing.assert_array_equal(frames.numpy(), pillow)


def test_without_simplejpeg_pixels_are_the_same(frames_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(frames_root)
    fast = store.read(1, range(12))
    monkeypatch.setattr(images, "simplejpeg", None)
    torch.testing.assert_close(store.read(1, range(12)), fast, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P"])
def test_images_of_any_colours_become_rgb(mode: str, tmp_path: Path) -> None:
    suffix = "jpg" if mode in {"L", "CMYK"} else "png"
    for number in range(3):
        path = tmp_path / "a" / "v" / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbered_frame(number)).convert(mode).save(path)
    assert [number_of(f) for f in open_store(tmp_path).read(0, [0, 1, 2]).numpy()] == [0, 1, 2]


def test_frames_follow_their_numbers_padded_or_not(tmp_path: Path) -> None:
    for number in range(12):
        path = tmp_path / "a" / "clip.mp4" / f"image_{number + 1}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbered_frame(number)).save(path)
    (path.parent / "Thumbs.db").touch()
    (path.parent / ".hidden.jpg").touch()
    store = open_store(tmp_path)
    assert store.videos == ["a/clip"]
    assert [number_of(f) for f in store.read(0, range(12)).numpy()] == list(range(12))


def test_class_folders_may_lie_a_level_deeper(tmp_path: Path) -> None:
    for part, name in (("train_256", "run"), ("val_256", "sit"), ("val_256", "run")):
        write_video(tmp_path / part / name / f"{part}.mp4", 3)
    assert open_store(tmp_path).videos == ["run/train_256", "run/val_256", "sit/val_256"]


def test_flat_videos_get_their_classes_from_lists(tmp_path: Path) -> None:
    for number in (101, 102, 203):
        write_video(tmp_path / "videos" / f"{number}.webm", 3, codec="libvpx")
    assert list_videos(tmp_path / "videos").layout == "flat"
    (tmp_path / "train_few_shot.txt").write_text("train0/101\ntrain0/102\n")
    (tmp_path / "test_few_shot.txt").write_text("test18/203\n")
    sets = load_video_sets(tmp_path / "videos", str(tmp_path))
    assert sets["train"].class_names == ("train0",)
    assert [sets["train"].store.videos[row] for row in sets["train"].members[0]] == ["101", "102"]
    assert sets["test"].class_names == ("test18",)
    for split in ("random", {"train": ["x"]}, "hmdb51"):
        with pytest.raises(ValueError, match=r"set split (or lists )?to a folder of list files"):
            load_video_sets(tmp_path / "videos", split)


def test_layouts_that_do_not_fit_are_refused(frames_root: Path, tmp_path: Path) -> None:
    archive = zip_folder(frames_root, tmp_path / "a.zip")
    for root, layout in ((archive, "videos"), (frames_root, "zip"), (frames_root, "cache"), (frames_root, "flat")):
        with pytest.raises(ValueError, match=r"layout '\w+' is|is not a frame cache"):
            open_store(root, layout)


def test_damaged_frames_are_found_when_they_are_counted_or_read(tmp_path: Path) -> None:
    for name in ("empty", "cut", "size", "gone", "good"):
        write_frames(tmp_path / "a" / name, 4)
    (tmp_path / "a" / "none").mkdir()
    (tmp_path / "a" / "empty" / "00000002.jpg").write_bytes(b"")
    cut = tmp_path / "a" / "cut" / "00000002.jpg"
    cut.write_bytes(cut.read_bytes()[:700])
    Image.fromarray(numbered_frame(1, 32, 48)).save(tmp_path / "a" / "size" / "00000002.jpg")
    with pytest.warns(DataWarning, match=r"skipped 2 videos .*empty \(frame 00000002.jpg is empty.*none \(contains no"):
        store = open_store(tmp_path, "frames")
    (tmp_path / "a" / "gone" / "00000004.jpg").unlink()
    reasons = {
        "a/cut": "00000002.jpg: cannot be decoded",
        "a/size": "differs in size",
        "a/gone": "has 3 frames, had 4",
    }
    for name, reason in reasons.items():
        with pytest.raises(VideoError, match=reason):
            store.read(store.videos.index(name), [0, 1])
    assert number_of(store.read(store.videos.index("a/good"), [3])[0].numpy()) == 3


def entries_of(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(numbered_frame(number)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_a_zip_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    names = ["../../a/v/1.jpg", "/etc/v/1.jpg", "b/../c/v/1.jpg", "C:/a/w/1.jpg", "d\\..\\e/f/v/1.jpg"]
    path = entries_of(tmp_path / "evil.zip", {name: jpeg(0) for name in [*names, "good/v/1.jpg"]})
    with pytest.warns(DataWarning, match=r"skipped \d videos .*has a path outside the zip"):
        store = open_store(path)
    assert store.videos == ["good/v"]


def test_videos_in_two_places_of_a_zip_are_not_mixed(tmp_path: Path) -> None:
    names = ["train/a/v/1.jpg", "val/a/v/1.jpg", "train/a/w/1.jpg", "readme.txt", "x/1.jpg"]
    with pytest.warns(DataWarning, match=r"a/v \('val/a/v/1.jpg' is in two folders"):
        assert open_store(entries_of(tmp_path / "a.zip", {n: jpeg(0) for n in names})).videos == ["a/w"]


def test_damaged_zips_are_refused_by_name(frames_root: Path, tmp_path: Path) -> None:
    good = zip_folder(frames_root, tmp_path / "good.zip")
    data = good.read_bytes()
    for name, damaged in (("half", data[: len(data) // 2]), ("none", b""), ("text", b"no zip at all" * 50)):
        (tmp_path / f"{name}.zip").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name}\.zip is not a complete zip"):
            open_store(tmp_path / f"{name}.zip")
    flipped = bytearray(data)
    with zipfile.ZipFile(good) as archive:
        offset = archive.getinfo("run/v1/00000003.jpg").header_offset
    flipped[offset + 600] ^= 4
    (tmp_path / "flipped.zip").write_bytes(flipped)
    store = open_store(tmp_path / "flipped.zip")
    with pytest.raises(VideoError, match=r"flipped\.zip: frame 2 of run/v1 is damaged \(its checksum differs\)"):
        store.read(store.videos.index("run/v1"), [0, 2])
    entries_of(tmp_path / "empty.zip", {"a/v/1.jpg": b"", "a/v/2.jpg": jpeg(1), "a/w/1.jpg": jpeg(0)})
    with pytest.warns(DataWarning, match=r"a/v \('a/v/1.jpg' is empty"):
        assert open_store(tmp_path / "empty.zip").videos == ["a/w"]
    encrypted = bytearray(entries_of(tmp_path / "e.zip", {"a/v/1.jpg": jpeg(0)}).read_bytes())
    directory = encrypted.index(b"PK\x01\x02")
    struct.pack_into("<H", encrypted, directory + 8, 1)
    (tmp_path / "e.zip").write_bytes(encrypted)
    with pytest.raises(VideoError, match="is encrypted"):
        open_store(tmp_path / "e.zip")


def test_the_directory_of_a_zip_is_read_once(
    frames_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRM_CACHE", str(tmp_path / "cache"))
    path = zip_folder(frames_root, tmp_path / "a.zip")
    first = open_store(path)
    monkeypatch.setattr(zips, "_read_directory", lambda path: pytest.fail("read again"))
    again = open_store(path)
    assert again.videos == first.videos
    torch.testing.assert_close(again.read(2, [0, 5]), first.read(2, [0, 5]))
    monkeypatch.undo()
    monkeypatch.setenv("STRM_CACHE", str(tmp_path / "cache"))
    (remembered,) = (tmp_path / "cache" / "index").iterdir()
    remembered.write_bytes(remembered.read_bytes()[:200])
    assert open_store(path).videos == first.videos
    smaller = entries_of(path, {"a/v/1.jpg": jpeg(0)})
    assert open_store(smaller).videos == ["a/v"]


def test_a_store_is_a_video_store(frames_root: Path) -> None:
    store = open_store(frames_root)
    assert isinstance(store, VideoStore)
    store.check_supports("segments", 8, 256)
    assert store.path_of(0) == frames_root / "Jump High" / "v1"


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_grey_images_of_16_bits_keep_their_upper_8(mode: str) -> None:
    levels = np.linspace(0, 65535, 32 * 48).reshape(32, 48).astype(np.uint16)
    buffer = io.BytesIO()
    stored = levels.astype(">u2" if mode.endswith("B") else "<u2").tobytes()
    Image.frombytes(mode, (48, 32), stored).save(buffer, "PNG")
    image = images.decode_image(buffer.getvalue(), "place")
    np.testing.assert_array_equal(image, np.repeat((levels >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_colour_images_of_16_bits_keep_their_upper_8() -> None:
    levels = np.arange(4 * 4 * 3, dtype=np.uint16).reshape(4, 4, 3) * 1300 + 255
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    chunks = [(b"IHDR", struct.pack(">2I5B", 4, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    np.testing.assert_array_equal(images.decode_image(data, "place"), (levels >> 8).astype(np.uint8))


@pytest.mark.parametrize("zipped", [False, True])
def test_a_frame_in_two_formats_is_one_frame(zipped: bool, tmp_path: Path) -> None:
    for suffix in ("png", "jpg"):
        write_frames(tmp_path / "frames" / "a" / "v", 12, suffix=suffix)
    (tmp_path / "frames" / "a" / "v" / "00000012.jpg").unlink()
    root = zip_folder(tmp_path / "frames", tmp_path / "a.zip") if zipped else tmp_path / "frames"
    store = open_store(root)
    assert store.frame_counts.tolist() == [12]
    assert [number_of(f) for f in store.read(0, range(12)).numpy()] == list(range(12))
    (first, last) = [data[:2] for _, data in store.encoded(0, [0, 11])]
    assert (first, last) == (b"\xff\xd8", b"\x89P")


def test_entries_of_one_name_are_one_frame_and_the_last_counts(tmp_path: Path) -> None:
    path = entries_of(tmp_path / "a.zip", {"a/v/1.jpg": jpeg(7), "a/v/2.jpg": jpeg(1), "a/v/X.jpg": jpeg(0)})
    path.write_bytes(path.read_bytes().replace(b"a/v/X.jpg", b"a/v/1.jpg"))
    store = open_store(path)
    assert store.frame_counts.tolist() == [2]
    assert [number_of(f) for f in store.read(0, [0, 1]).numpy()] == [0, 1]


def test_entries_with_backslashes_and_hidden_ones_are_read_as_on_disk(tmp_path: Path) -> None:
    names = ["a\\v\\1.jpg", "a\\v\\2.jpg", "a/v/3.jpg", "__MACOSX/a/v/._1.jpg", "a/v/.4.jpg"]
    store = open_store(entries_of(tmp_path / "a.zip", {name: jpeg(number) for number, name in enumerate(names)}))
    assert (store.videos, store.frame_counts.tolist()) == (["a/v"], [3])
    assert [number_of(f) for f in store.read(0, [0, 1, 2]).numpy()] == [0, 1, 2]


def claims(data: bytes, height: int, width: int) -> bytes:
    """A JPEG or PNG whose header has another size."""
    if data[:2] == b"\xff\xd8":
        place = data.index(b"\xff\xc0") + 5
        return data[:place] + struct.pack(">2H", height, width) + data[place + 4 :]
    head = b"IHDR" + struct.pack(">2I", width, height) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "JPEG by Pillow"])
def test_images_of_too_many_pixels_are_refused_before_decoding(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.fromarray(numbered_frame(1)).save(buffer, suffix.split()[0])
    if suffix == "JPEG by Pillow":
        monkeypatch.setattr(images, "simplejpeg", None)
    tracemalloc.start()
    for height, width in ((9000, 9000), (30000, 30000)):
        with pytest.raises(VideoError, match=r"^place: .*(30000 x 30000|9000 x 9000|Image size \(900000000)"):
            images.decode_image(claims(buffer.getvalue(), height, width), "place")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 9000 * 9000
    assert images.decode_image(buffer.getvalue(), "place").shape == (64, 96, 3)


def test_entries_that_unpack_to_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/big/1.jpg", jpeg(1) + bytes(3_000_000))
        archive.writestr("a/liar/1.jpg", jpeg(1) + bytes(3_000_000))
        archive.writestr("a/good/1.jpg", jpeg(1))
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"a/liar/1.jpg") - 46  # the directory says that it is small
    struct.pack_into("<I", data, entry + 24, 500_000)
    path.write_bytes(data)
    monkeypatch.setattr(limits, "MAX_BYTES", 1_000_000)
    with pytest.warns(DataWarning, match=r"skipped 1 video .*a/big \('a/big/1.jpg' is larger than 1.0 MB"):
        store = open_store(path)
    assert store.videos == ["a/good", "a/liar"]
    tracemalloc.start()
    with pytest.raises(VideoError, match="frame 0 of a/liar is damaged"):
        store.read(1, [0])
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_image_files_of_too_many_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_frames(tmp_path / "a" / "v", 2)
    monkeypatch.setattr(limits, "MAX_BYTES", 100)
    with pytest.raises(VideoError, match=r"00000001\.jpg: is larger than"):
        open_store(tmp_path).read(0, [0])
