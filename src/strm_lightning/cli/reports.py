"""Output formats of ``strm classify``: table, JSON lines and CSV."""

import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from strm_lightning.classifier.live import LiveEvent
from strm_lightning.classifier.predictions import Prediction, WindowPrediction, clock
from strm_lightning.data.decode.video import VideoError

Found = Prediction | WindowPrediction | LiveEvent | VideoError


@runtime_checkable
class Report(Protocol):
    """Prints predictions to standard output, one by one."""

    def __init__(self, videos: Sequence[str]) -> None: ...

    def add(self, video: str, found: Found) -> None:
        """Print a prediction, or the error of a video that cannot be read."""


class Table:
    """A table with label, probability and the two next classes."""

    def __init__(self, videos: Sequence[str]) -> None:
        common = os.path.commonpath([Path(v).absolute().parent for v in videos]) if len(videos) > 1 else ""
        self.short: dict[str, str] = {v: os.path.relpath(v, common) if common else v for v in videos}
        self.width = min(60, max((len(name) for name in self.short.values()), default=0))

    def add(self, video: str, found: Found) -> None:
        """Print a row."""
        name = f"{self.short.get(video, video):<{self.width}}"
        if isinstance(found, VideoError):
            sys.stdout.write(f"{name}  cannot be read: {found}\n")
            return
        live = ""
        if isinstance(found, LiveEvent):
            live = f"   {found.latency:.1f} s late, {found.frames_per_second:.1f} frames a second"
            found = found.event
        prediction = found.prediction if isinstance(found, WindowPrediction) else found
        time = f"  {clock(found.start)}-{clock(found.end)}" if isinstance(found, WindowPrediction) else ""
        others = [(k, p) for k, p in prediction.probabilities.items() if k != prediction.label][:2]
        rest = ", ".join(f"{label} {p:.2f}" for label, p in others)
        width = max(map(len, (*prediction.probabilities, "unknown")))
        label = f"{prediction.label:<{width}}"
        sys.stdout.write(f"{name}{time}  {label}  {prediction.probability:.2f}   ({rest}){live}\n")


class JsonLines:
    """One JSON object per line, with the probabilities of all classes."""

    def __init__(self, videos: Sequence[str]) -> None:
        pass

    def add(self, video: str, found: Found) -> None:
        """Print an object."""
        sys.stdout.write(json.dumps(_record(video, found)) + "\n")


class Csv:
    """Comma-separated values with a header."""

    def __init__(self, videos: Sequence[str]) -> None:
        self.writer = csv.DictWriter(
            sys.stdout, ("video", "start", "end", "label", "probability", "rejected", "error"), extrasaction="ignore"
        )
        self.writer.writeheader()

    def add(self, video: str, found: Found) -> None:
        """Print a row."""
        self.writer.writerow(_record(video, found))


def _record(video: str, found: Found) -> dict[str, Any]:
    if isinstance(found, VideoError):
        return {"video": video, "error": str(found)}
    live = {}
    if isinstance(found, LiveEvent):
        live = {"latency": found.latency, "frames_per_second": found.frames_per_second, "dropped": found.dropped}
        found = found.event
    prediction = found.prediction if isinstance(found, WindowPrediction) else found
    times = {"start": found.start, "end": found.end} if isinstance(found, WindowPrediction) else {}
    scores = {"label": prediction.label, "probability": prediction.probability, "rejected": prediction.rejected}
    return {"video": video, **times, **scores, "probabilities": dict(prediction.probabilities), **live}


REPORTS: dict[str, type[Report]] = {"table": Table, "json": JsonLines, "csv": Csv}
