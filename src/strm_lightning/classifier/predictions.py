"""What the classifier says of a video, or of a stretch of it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Prediction:
    """The label of one video.

    Attributes:
        label: the most probable class, or ``unknown`` where its probability is below the threshold.
        probability: that of the most probable class, also where the label is ``unknown``.
        probabilities: of every class, the most probable first; they sum to 1.
        video: path of the video, or what an array was called.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]
    video: str = ""

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
    for label, run in groupby(windows, key=lambda w: w.prediction.label):
        stretch = list(run)
        names = stretch[0].prediction.probabilities
        mean = {n: sum(w.prediction.probabilities[n] for w in stretch) / len(stretch) for n in names}
        ranked = dict(sorted(mean.items(), key=lambda item: -item[1]))
        top = max(ranked.values()) if label == UNKNOWN else ranked[label]
        prediction = Prediction(label, top, ranked, stretch[0].prediction.video)
        yield WindowPrediction(stretch[0].start, stretch[-1].end, prediction)


def clock(seconds: float) -> str:
    """Seconds as people write them: ``0:07``, ``12:30``, ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
