"""What the classifier says of a video, or of a stretch of it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Prediction:
    """The label of one video.

    Attributes:
        label: the most probable class, or ``unknown`` if the video is rejected.
        probability: that of the most probable class, also if the video is rejected.
        probabilities: of every class, the most probable first; they sum to 1.
        video: path of the video, or the shape of an array.
        rejected: whether the most probable class is below the threshold. A file of examples from before version 0.2 may
            have a class named ``unknown``; this attribute distinguishes it from a rejection.
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
    """The label of a stretch of a long video.

    Attributes:
        start: where it begins, in seconds.
        end: where it ends, in seconds.
        prediction: what is seen in it.
    """

    start: float
    end: float
    prediction: Prediction

    def __str__(self) -> str:
        return f"{clock(self.start)}-{clock(self.end)} {self.prediction}"


def merge_windows(windows: Iterable[WindowPrediction]) -> Iterator[WindowPrediction]:
    """Join neighbours of one label; their probabilities are averaged."""
    for (label, rejected), run in groupby(windows, key=lambda w: (w.prediction.label, w.prediction.rejected)):
        stretch = list(run)
        names = stretch[0].prediction.probabilities
        mean = {n: sum(w.prediction.probabilities[n] for w in stretch) / len(stretch) for n in names}
        ranked = dict(sorted(mean.items(), key=lambda item: -item[1]))
        top = max(ranked.values()) if rejected else ranked[label]
        prediction = Prediction(label, top, ranked, stretch[0].prediction.video, rejected)
        yield WindowPrediction(stretch[0].start, stretch[-1].end, prediction)


def clock(seconds: float) -> str:
    """Format seconds with tenths: ``0:07.5``, ``12:30.0``, ``1:02:03.2``."""
    whole, tenths = divmod(round(10 * seconds), 10)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{rest:02}.{tenths}"
