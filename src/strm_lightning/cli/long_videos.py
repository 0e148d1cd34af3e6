"""Options of ``strm classify`` for events in long videos, cameras and streams."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.live import DEFAULT_DELAY, LiveEvent, LiveSource
from strm_lightning.classifier.predictions import WindowPrediction
from strm_lightning.classifier.videos import Video, duration_of
from strm_lightning.cli.subtitles import write_srt, write_vtt
from strm_lightning.cli.timeline import check_timeline, draw_timeline
from strm_lightning.data.decode.video import VideoError
from strm_lightning.errors import InputError
from strm_lightning.messages import check_not_negative, check_positive


@dataclass(frozen=True)
class LongVideos:
    """Options of events; see `cli.classify.classify`."""

    events: bool = False
    length: float | None = None
    srt: str | None = None
    vtt: str | None = None
    timeline: str | None = None
    camera: int | None = None
    stream: str | None = None
    delay: float = DEFAULT_DELAY

    @property
    def source(self) -> str | int | None:
        """Camera or stream, if one is given."""
        return self.stream if self.camera is None else self.camera

    def check(self, files: Sequence[Video], window: float | None) -> None:
        """Check the options before anything is encoded."""
        files_out = {"srt": self.srt, "vtt": self.vtt, "timeline": self.timeline}
        given = [name for name, value in files_out.items() if value is not None]
        check_positive(length=self.length)
        check_not_negative(delay=self.delay)
        if self.camera is not None and self.stream is not None:
            raise InputError("--camera and --stream exclude each other")
        if self.source is not None and (files or window is not None or given or self.events):
            raise InputError("--camera and --stream exclude videos, --window, --events, --srt, --vtt and --timeline")
        if self.events and window is not None:
            raise InputError("--events and --window exclude each other: the lengths of windows follow the examples")
        for name in given:
            if not self.events:
                raise InputError(f"--{name} needs --events")
            if len(files) != 1:
                raise InputError(f"--{name} needs one video, not {len(files)}")
            if Path(str(files_out[name])).is_dir():
                raise InputError(f"--{name} {files_out[name]}: is a folder; give a file")
        if self.length is not None and not self.events and self.source is None:
            raise InputError("--length needs --events, --camera or --stream")
        if self.timeline is not None:
            check_timeline(self.timeline)

    def check_durations(self, examples: Mapping[str, Sequence[Video]] | str) -> None:
        """Check that an example has a duration, if events need one; those in a file are checked when it is loaded."""
        if isinstance(examples, str) or self.length is not None or not (self.events or self.source is not None):
            return
        if not any(_can_have_duration(video) for videos in examples.values() for video in videos):
            raise InputError(
                "the examples are frames, whose durations are not known: give --length, the duration of an action in "
                "seconds"
            )

    def find(self, classifier: FewShotClassifier, file: Video) -> Iterator[WindowPrediction]:
        """Yield the events of a file and write the files that are asked for."""
        events = list(classifier.predict_events(file, length=self.length, progress=True))
        if self.srt is not None:
            write_srt(self.srt, events)
        if self.vtt is not None:
            write_vtt(self.vtt, events)
        if self.timeline is not None:
            end = max([duration_of(file) or 0.0, *(event.end for event in events)])
            draw_timeline(self.timeline, events, classifier.support.labels, end)
        yield from events

    def watch(self, classifier: FewShotClassifier, source: LiveSource) -> Iterator[tuple[str, LiveEvent]]:
        """Yield the events of a camera or stream as they happen, until it ends or Ctrl-C is pressed."""
        found = classifier.live(source, length=self.length, delay=self.delay)
        print("watching; Ctrl-C stops", file=sys.stderr)
        count, last = 0, None
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(found):
            for last in found:
                count += 1
                yield str(source), last
        rate = "" if last is None else f"; {last.frames_per_second:.1f} frames a second, {last.dropped} dropped"
        print(f"{count} event{'' if count == 1 else 's'}{rate}", file=sys.stderr)


def _can_have_duration(video: Video) -> bool:
    try:
        return duration_of(video) is not None
    except VideoError:  # reported when the examples are encoded
        return True
