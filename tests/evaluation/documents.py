"""Documents as `strm test` writes them, made of random answers."""

from pathlib import Path
from typing import Any

import numpy as np

from strm_lightning.evaluation.intervals import all_intervals
from strm_lightning.evaluation.results import EpisodeResults
from strm_lightning.evaluation.results_file import save_results

CLASSES = ("bend", "clap", "jump", "kick", "wave_both hands")


def random_results(
    skill: float, *, episodes: int = 400, way: int = 3, queries: int = 2, seed: int = 0, clips: bool = True
) -> EpisodeResults:
    """Answers right with probability ``skill`` (and by chance), to episodes that ``seed`` alone decides."""
    rng, luck = np.random.default_rng(seed), np.random.default_rng([seed, round(1000 * skill)])
    classes = np.stack([rng.permutation(len(CLASSES))[:way] for _ in range(episodes)])
    actual = classes.repeat(queries, axis=1)
    guesses = np.take_along_axis(classes, luck.integers(0, way, actual.shape), axis=1)
    predicted = np.where(luck.random(actual.shape) < skill, actual, guesses)
    if not clips:
        return EpisodeResults(np.arange(episodes), predicted, actual)
    order = np.argsort(rng.random((episodes, way, 6)), 2)[:, :, : 1 + queries] + 6 * classes[..., None]
    support, query = order[:, :, :1], order[:, :, 1:].reshape(episodes, -1)
    return EpisodeResults(np.arange(episodes), predicted, actual, classes, support, query)


def document(results: EpisodeResults, *, chosen_on: str = "val", sweep: Any = (), **protocol: Any) -> dict[str, Any]:
    """What `strm test` would write of these results."""
    return {
        **results.summary(),
        "intervals": all_intervals(results),
        "controls": {},
        "way": 3,
        "shot": 1,
        "sweep": list(sweep),
        "per_class": results.by_class(CLASSES),
        "timing": {},
        "card": {
            "protocol": {"way": 3, "shot": 1, "seed": 0, "num_frames": 8, "video_list": "sha256:1", **protocol},
            "data": {"videos": 50, "classes": len(CLASSES), "missing": [], "unreadable": []},
            "checkpoint": {"chosen_on": chosen_on},
        },
        "confusion": {"classes": list(CLASSES), "counts": results.confusion(len(CLASSES)).tolist()},
        "per_episode": {
            "seed": [f"0/test/0/{index}" for index in results.index],
            "accuracy": results.per_episode.tolist(),
            "actual": results.actual.tolist(),
            "predicted": results.predicted.tolist(),
            **{
                name: array.tolist()
                for name in ("classes", "support", "query")
                if (array := getattr(results, name)) is not None
            },
        },
    }


def sweep_row(results: EpisodeResults, *, way: int = 3, shot: int = 1) -> dict[str, Any]:
    """A row of a document's sweep."""
    return {"way": way, "shot": shot, **results.summary(), "per_episode": results.per_episode.tolist()}


def write(folder: Path, skill: float, **options: Any) -> Path:
    """A results.json of a model of that skill."""
    return save_results(folder, document(random_results(skill), **options))
