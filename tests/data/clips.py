"""Video files for tests: each frame carries its own number in its picture, and survives lossy codecs."""

import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

BITS = 10


def numbered_frame(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A gradient with the number in binary as black and white bars along the top half."""
    image = np.empty((height, width, 3), dtype=np.uint8)
    image[..., 0] = np.linspace(40, 200, width)
    image[..., 1] = np.linspace(200, 40, height)[:, None]
    image[..., 2] = 40 + number * 5 % 160
    for bit, columns in enumerate(np.array_split(np.arange(width), BITS)):
        image[: height // 2, columns] = 235 if number >> bit & 1 else 20
    return image


def number_of(image: np.ndarray) -> int:
    """The number that a picture carries, at any size."""
    bars = np.asarray(image)[: image.shape[0] // 2 - 2, :, :].mean(axis=(0, 2))
    return sum(1 << bit for bit, part in enumerate(np.array_split(bars, BITS)) if np.median(part) > 128)


def write_video(
    path: Path,
    count: int = 20,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 96),
    gop: int = 12,
    b_frames: int = 0,
    times: list[int] | None = None,
    rate: int = 25,
    options: dict[str, str] | None = None,
) -> Path:
    """Write ``count`` numbered frames; ``times`` are presentation times in 1/100 s where the rate varies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        stream.codec_context.bit_rate = 2_000_000
        if times:
            stream.codec_context.time_base = Fraction(1, 100)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, *size))
            frame.pts = times[number] if times else number
            frame.time_base = Fraction(1, 100) if times else Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_frames(folder: Path, count: int, *, size: tuple[int, int] = (64, 96), suffix: str = "jpg") -> Path:
    """Write ``count`` numbered frames as image files, ``00000001.jpg`` first."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(numbered_frame(number, *size)).save(folder / f"{number + 1:08}.{suffix}", quality=92)
    return folder


def zip_folder(root: Path, path: Path, compression: int = zipfile.ZIP_STORED, prefix: str = "") -> Path:
    """Put all files under a folder into a zip."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(root.rglob("*.*")):
            archive.write(file, f"{prefix}{file.relative_to(root)}")
    return path


def write_audio(path: Path, seconds: float = 0.5) -> Path:
    """Write a file that has sound and no picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, int(16000 * seconds)), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rotate(path: Path, matrix: tuple[int, ...]) -> Path:
    """Rewrite the display matrix (a, b, c, d of the track header) of an mp4."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # version, times, id, duration, reserved, layer … come first
    a, b, c, d = matrix
    values = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    data[start : start + 36] = b"".join((value & 0xFFFFFFFF).to_bytes(4, "big") for value in values)
    path.write_bytes(data)
    return path
