"""Events of a camera or a stream as they happen: a thread decodes and keeps only the newest frame."""

import platform
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer

from strm_lightning.classifier.clips import ClipConfig
from strm_lightning.classifier.events import EventStream, WindowPlan
from strm_lightning.classifier.predictions import WindowPrediction
from strm_lightning.classifier.support import SupportSet
from strm_lightning.data.decode.upright import UprightRGB
from strm_lightning.data.decode.video import VideoError
from strm_lightning.messages import check_not_negative

# Seconds; chosen on joined clips (docs/own-videos.md). Longer ones gain little.
DEFAULT_DELAY = 5.0
_TIMEOUT = (20.0, 20.0)  # seconds to open a source and to wait for a frame
_FAILURES = (av.error.FFmpegError, ValueError, IndexError)  # that PyAV raises
_ONE_READER = ("pipe", "fd", "tcp", "unix")  # protocols of FFmpeg without a second reader


@dataclass(frozen=True)
class LiveEvent:
    """An event of a stream.

    Attributes:
        event: interval in seconds since the first frame, and label.
        latency: seconds from the end of the event until it was reported.
        frames_per_second: encoded frames per second so far.
        dropped: frames that were decoded and not encoded so far, because the rate is lower or the machine too slow.
    """

    event: WindowPrediction
    latency: float
    frames_per_second: float
    dropped: int


@dataclass(frozen=True)
class Input:
    """Arguments of ``av.open``.

    Attributes:
        name: file, address or device.
        format: name of FFmpeg's input device; None to detect the format.
        is_file: whether it is a file, which is played at its own pace.
    """

    name: str
    format: str | None = None
    is_file: bool = False


def find_input(source: str | int | Path) -> Input:
    """Return how to open a camera, a file or an address.

    Cameras are opened by v4l2 on Linux, avfoundation on macOS, and dshow on Windows.

    Raises:
        VideoError: there is no such camera.
    """
    if not isinstance(source, int):
        return Input(str(source), is_file=Path(source).is_file())
    system = platform.system()
    if system == "Linux":
        cameras = sorted(str(path) for path in Path("/dev").glob("video*"))
        if f"/dev/video{source}" in cameras:
            return Input(f"/dev/video{source}", "v4l2")
        raise VideoError(f"camera {source}: there is no /dev/video{source}; cameras: {', '.join(cameras) or 'none'}")
    if system == "Darwin":
        return Input(str(source), "avfoundation")
    from av.device import enumerate_input_devices  # dshow has names instead of numbers

    names = [device.name for device in enumerate_input_devices("dshow") if "video" in device.media_types]
    if 0 <= source < len(names):
        return Input(f"video={names[source]}", "dshow")
    raise VideoError(f"camera {source}: does not exist; cameras: {', '.join(names) or 'none'}")


class LiveSource:
    """A camera, a file or an address. ``str`` of it is its number or its name.

    Args:
        source: number of a camera, a file or an address.

    Raises:
        VideoError: there is no such camera.
    """

    def __init__(self, source: str | int | Path) -> None:
        self._source, self._input = source, find_input(source)
        self._held: InputContainer | None = None

    def __str__(self) -> str:
        return str(self._source)

    @property
    def is_file(self) -> bool:
        """Whether it is a file, which is played at its own pace."""
        return self._input.is_file

    @property
    def has_one_reader(self) -> bool:
        """Whether it cannot be opened a second time, such as a pipe or a TCP connection."""
        name, path = self._input.name, Path(self._input.name)
        is_pipe = path.exists() and not self.is_file and self._input.format is None
        return is_pipe or name.partition(":")[0] in _ONE_READER

    def check(self) -> "LiveSource":
        """Open the source, to report an error before long computations; return the source.

        Raises:
            VideoError: the source cannot be opened, or contains no video.
        """
        # What is read of a pipe at the opening cannot be read again, so it is kept open until `open`; its writer waits.
        # Anything else is closed: until `open`, a camera would fill its buffers with old frames, and a server would end
        # a connection that is not read.
        container = self.open()
        if self.has_one_reader:
            self._held = container
        else:
            container.close()
        return self

    def open(self) -> InputContainer:
        """Open the source, or return what `check` has kept open; it contains video.

        Raises:
            VideoError: the source cannot be opened, or contains no video.
        """
        if self._held is not None:
            container, self._held = self._held, None
            return container
        options: dict[str, Any] = {} if self.is_file else {"timeout": _TIMEOUT}
        try:
            container = av.open(self._input.name, format=self._input.format, **options)
        except _FAILURES as error:
            raise self.failed("opened", error) from error
        if not container.streams.video:
            container.close()
            raise self.failed("opened", ValueError("contains no video stream"))
        return container

    def failed(self, action: str, error: Exception) -> VideoError:
        """Return the error ``SOURCE: cannot be ACTION (REASON)``."""
        reason = getattr(error, "strerror", None) or str(error)
        name = f"camera {self._source}" if isinstance(self._source, int) else str(self._source)
        return VideoError(f"{name}: cannot be {action} ({reason})")


class NewestFrame:
    """Reader thread of a source; only the newest frame is stored, with the time at which it arrived.

    Args:
        source: number of a camera, a file, an address, or a source that may have been checked.

    Raises:
        VideoError: there is no such camera.
    """

    def __init__(self, source: str | int | Path | LiveSource) -> None:
        self._source = source if isinstance(source, LiveSource) else LiveSource(source)
        self._change = threading.Condition()
        self._frame: tuple[np.ndarray, float] | None = None
        self._error: VideoError | None = None
        self._ended = self._stop = False
        self.decoded = 0
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "NewestFrame":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join(timeout=1)  # a blocked read ends with the process

    def take(self) -> tuple[np.ndarray, float] | None:
        """Wait for a frame that was not taken yet; return it with its time in seconds, or None at the end.

        Raises:
            VideoError: the source cannot be opened or read.
        """
        with self._change:
            while self._frame is None and not self._ended:
                self._change.wait(0.2)  # a wait without limit would block Ctrl-C on Windows
            frame, self._frame = self._frame, None
            if frame is None and self._error is not None:
                raise self._error
            return frame

    def _read(self) -> None:
        try:
            with self._source.open() as container:
                self._decode(container)
        except VideoError as error:
            self._error = error
        except _FAILURES as error:
            self._error = self._source.failed("read" if self.decoded else "opened", error)
        finally:
            with self._change:
                self._ended = True
                self._change.notify()

    def _decode(self, container: InputContainer) -> None:
        start, first, upright_rgb = None, 0.0, UprightRGB()
        for frame in container.decode(container.streams.video[0]):
            if self._stop:
                return
            now = time.monotonic()
            if start is None:
                start, first = now, float(frame.time or 0.0)
            if self._source.is_file and frame.time is not None:
                time.sleep(max(0.0, start + float(frame.time) - first - now))
            image = upright_rgb(frame)
            with self._change:
                self.decoded += 1
                self._frame = image, time.monotonic()
                self._change.notify()


def watch(
    source: str | int | Path | LiveSource, support: SupportSet, config: ClipConfig, plan: WindowPlan, delay: float
) -> Iterator[LiveEvent]:
    """Yield the events of a stream as they happen.

    Times are those of the clock at which frames arrive. If the machine is slower than the stream, frames are dropped
    and time steps without a frame repeat the last one, so events are neither delayed nor stretched. Nothing is written
    to disk, and memory is constant.

    Args:
        source: number of a camera, a file (played at its own pace), an address, or a source that may have been checked.
        support: the examples.
        config: size and number of frames of a clip.
        plan: windows; its ``fps`` is the largest number of frames per second that are encoded.
        delay: seconds after its end at which an event of the best segmentation is final.

    Raises:
        InputError: the delay is negative.
        VideoError: the source cannot be opened or read.
    """
    check_not_negative(delay=delay)
    stream = EventStream(support, config, plan, delay, str(source))
    with NewestFrame(source) as reader:
        first, last, encoded = None, -1, 0

        def report(events: list[WindowPrediction]) -> Iterator[LiveEvent]:
            elapsed = time.monotonic() - (first or 0.0)
            rate, dropped = encoded / max(elapsed, 1e-9), reader.decoded - encoded
            for event in events:
                yield LiveEvent(event, max(0.0, elapsed - event.end), rate, dropped)

        while (taken := reader.take()) is not None:
            image, now = taken
            first = now if first is None else first
            step = int((now - first) * plan.fps)
            if step <= last:
                continue
            last, encoded = step, encoded + 1
            pixels = config.transform(torch.from_numpy(image)[None], None)
            yield from report(stream.push(pixels, [step]))
        yield from report(stream.finish())
