"""Events as subtitles, which video players show: SubRip (.srt) and WebVTT (.vtt)."""

from collections.abc import Sequence
from pathlib import Path

from strm_lightning.classifier.predictions import WindowPrediction
from strm_lightning.fileio import write_atomically, write_errors


def write_srt(path: str | Path, events: Sequence[WindowPrediction]) -> None:
    """Write events as SubRip.

    Raises:
        WriteError: the file cannot be written.
    """
    cues = [
        f"{number}\n{_clock(event.start, ',')} --> {_clock(event.end, ',')}\n{_text(event)}\n"
        for number, event in enumerate(events, 1)
    ]
    _write(path, "\n".join(cues))


def write_vtt(path: str | Path, events: Sequence[WindowPrediction]) -> None:
    """Write events as WebVTT.

    Raises:
        WriteError: the file cannot be written.
    """
    cues = [f"{_clock(event.start, '.')} --> {_clock(event.end, '.')}\n{_escape(_text(event))}\n" for event in events]
    _write(path, "\n".join(["WEBVTT\n", *cues]))


def _write(path: str | Path, text: str) -> None:
    with write_errors(path):
        write_atomically(path, text)


def _text(event: WindowPrediction) -> str:
    return " ".join(f"{event.prediction.label} {event.prediction.probability:.0%}".split())


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float, mark: str) -> str:
    """Format hours, minutes, seconds and milliseconds: ``00:01:02,500``."""
    whole, milliseconds = divmod(round(1000 * seconds), 1000)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest:02}{mark}{milliseconds:03}"
