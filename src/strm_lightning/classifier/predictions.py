"""Predictions for a video, or for a window of a long video."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Prediction:
    """The label of one video.

    Attributes:
        label: the most probable class, or ``unknown`` if the video is rejected.
        probability: probability of the most probable class, also if the video is rejected.
        probabilities: probability of each class in descending order; their sum is 1.
        video: path of the video, or the shape of an array.
        rejected: whether the most probable class is below the threshold. An examples file of version 0.1 may contain a
            class named ``unknown``; this attribute distinguishes it from a rejection.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]
    video: str = ""
    rejected: bool = False

    def __str__(self) -> str:
        return f"{self.label} {self.probability:.2f}"


@dataclass(frozen=True)
class WindowPrediction:
    """The label of a window of a long video.

    Attributes:
        start: start time in seconds.
        end: end time in seconds.
        prediction: prediction for the window.
    """

    start: float
    end: float
    prediction: Prediction

    def __str__(self) -> str:
        return f"{clock(self.start)}-{clock(self.end)} {self.prediction}"


def merge_windows(windows: Iterable[WindowPrediction]) -> Iterator[WindowPrediction]:
    """Merge consecutive windows that have the same label; average their probabilities."""
    for (label, rejected), run in groupby(windows, key=lambda w: (w.prediction.label, w.prediction.rejected)):
        merged = list(run)
        names = merged[0].prediction.probabilities
        mean = {n: sum(w.prediction.probabilities[n] for w in merged) / len(merged) for n in names}
        ranked = dict(sorted(mean.items(), key=lambda item: -item[1]))
        top = max(ranked.values()) if rejected else ranked[label]
        prediction = Prediction(label, top, ranked, merged[0].prediction.video, rejected)
        yield WindowPrediction(merged[0].start, merged[-1].end, prediction)


def clock(seconds: float) -> str:
    """Format seconds with tenths.

    Examples:
        >>> clock(7.5), clock(3723.2)
        ('0:07.5', '1:02:03.2')
    """
    whole, tenths = divmod(round(10 * seconds), 10)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{rest:02}.{tenths}"
