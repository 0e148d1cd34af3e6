"""Measure how often the intervals over episodes, clips and classes contain the values that they are about.

    python experiments/benchmarks/coverage.py --draws 2000

Each draw is a data set of its own: classes with Gaussian features and clips of them. Nearest class means classify the
queries of the same episodes that `strm test` draws. The true values are

- over episodes: the mean over all other episodes of these clips; the interval is that of the first twentieth.
- over clips: the expected accuracy with infinitely many clips of these classes, from episodes with new clips.
- over classes: the expected accuracy with infinitely many classes, from episodes with new classes and clips.

The last column is the share of intervals over episodes that contain the true value over clips. After each share follow
the root mean square of the half-widths, and 1.96 times the root mean square of the errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from jsonargparse import auto_cli
from torch import Tensor
from tqdm import tqdm

from strm_lightning.data.episodes import EpisodeGenerator
from strm_lightning.episode import Episode
from strm_lightning.evaluation.intervals import clip_design, over_classes, over_clips, over_episodes
from strm_lightning.evaluation.results import EpisodeResults
from strm_lightning.evaluation.tables import markdown_table

DIM = 8  # of a feature
SPREAD = 0.3  # standard deviation of the logarithm of the noise of a class, and of a clip
REPEATS = 10  # draws of clips of the same classes


@dataclass(frozen=True)
class Case:
    """A kind of test.

    Attributes:
        classes: test classes.
        clips: clips of a class.
        shot: support clips of a class in an episode.
        distance: standard deviation of the centres of the classes, in units of the clips' noise.
        way: classes of an episode.
        queries: queries of a class in an episode.
        episodes: episodes of a test.
    """

    classes: int
    clips: int
    shot: int
    distance: float
    way: int = 5
    queries: int = 5
    episodes: int = 1000

    @property
    def name(self) -> str:
        """The case, for a table."""
        kind = "distant classes" if self.distance > 1 else "classes"
        return f"{self.classes} {kind}, {self.clips} clips, {self.shot}-shot"


def episodes_of(case: Case) -> Episode:
    """Draw the episodes of a test as `strm test` does; clip ``i`` of class ``c`` is ``c * clips + i``."""
    members = np.arange(case.classes * case.clips).reshape(case.classes, case.clips)
    generator = EpisodeGenerator(list(members), case.way, case.shot, case.queries, "test")
    return Episode.stack([generator.draw(0, index)[0] for index in range(case.episodes)])


def draw_classes(case: Case, number: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the centre ``[number, D]`` and the noise ``[number]`` of classes."""
    centres = case.distance * torch.randn(number, DIM, generator=rng)
    return centres, (SPREAD * torch.randn(number, generator=rng)).exp()


def draw_clips(centres: Tensor, noise: Tensor, number: int, rng: torch.Generator) -> Float[Tensor, "*C n D"]:
    """Draw clips of classes: Gaussian with a noise of each class, times one of each clip."""
    shape = (*noise.shape, number)
    scale = noise.unsqueeze(-1) * (SPREAD * torch.randn(shape, generator=rng)).exp()
    return centres.unsqueeze(-2) + scale.unsqueeze(-1) * torch.randn(*shape, DIM, generator=rng)


def nearest_means(support: Float[Tensor, "E N K D"], query: Float[Tensor, "E Q D"]) -> Int[Tensor, "E Q"]:
    """Return the label of the nearest class mean of each query."""
    means = support.mean(2)
    return (means.square().sum(-1).unsqueeze(1) - 2 * query @ means.mT).argmin(-1)


def expected_accuracy(case: Case, centres: Tensor, noise: Tensor, rng: torch.Generator) -> float:
    """Compute the accuracy of episodes ``[E, N]`` of classes, each with new clips."""
    clips = draw_clips(centres, noise, case.shot + case.queries, rng)
    found = nearest_means(clips[:, :, : case.shot], clips[:, :, case.shot :].flatten(1, 2))
    return float((found == torch.arange(case.way).repeat_interleave(case.queries)).double().mean())


def _new_episodes(case: Case, number: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the classes of episodes, new ones for each: centres ``[E, N, D]`` and noise ``[E, N]``."""
    centres, noise = draw_classes(case, number * case.way, rng)
    return centres.unflatten(0, (number, case.way)), noise.unflatten(0, (number, case.way))


def measure(case: Case, draws: int, seed: int = 0, populations: int = 50) -> dict[str, float]:
    """Return accuracy, errors and the coverage of each interval.

    Args:
        case: the kind of test.
        draws: number of data sets.
        seed: seed of the data sets.
        populations: thousands of episodes with new classes, four for each, for the true value over classes.
    """
    rng = torch.Generator().manual_seed(seed)
    episodes, first = episodes_of(case), case.episodes // 20
    everywhere = np.mean(
        [
            expected_accuracy(
                case, *(t.unflatten(0, (-1, case.way)) for t in draw_classes(case, 4000 * case.way, rng)), rng
            )
            for _ in range(populations)
        ]
    )
    of_test = {
        "index": episodes.index.numpy(),
        "actual": episodes.class_ids.gather(1, episodes.query_labels).numpy(),
        "classes": episodes.class_ids.numpy(),
        "support": episodes.support_ids.numpy(),
        "query": episodes.query_ids.numpy(),
    }
    rows: list[dict[str, float]] = []
    design = None
    for number in tqdm(range(draws), case.name, leave=False, disable=None):
        if number % REPEATS == 0:
            centres, noise = draw_classes(case, case.classes, rng)
            same = episodes.class_ids.repeat(10, 1)
            truth = expected_accuracy(case, centres[same], noise[same], rng)
        clips = draw_clips(centres, noise, case.clips, rng).flatten(0, 1)
        labels = nearest_means(clips[episodes.support_ids], clips[episodes.query_ids])
        results = EpisodeResults(predicted=episodes.class_ids.gather(1, labels).numpy(), **of_test)
        design = design or clip_design(results)
        right = results.right
        found = {
            "clips": (over_clips(right, design), results.accuracy - truth),
            "classes": (over_classes(right, results), results.accuracy - everywhere),
            "episodes": (over_episodes(right[:first]), right[:first].mean() - right[first:].mean()),
            "episodes for clips": (over_episodes(right), results.accuracy - truth),
        }
        row = {"accuracy": results.accuracy}
        for name, (interval, error) in found.items():
            known = interval.ci95 is not None
            row[f"{name} error"], row[f"{name} width"] = error, interval.ci95 if known else np.nan
        rows.append(row)
    columns = {name: np.array([row[name] for row in rows], dtype=float) for name in rows[0]}
    summary = {"accuracy": float(columns["accuracy"].mean())}
    for name in found:
        error, width = columns[f"{name} error"], columns[f"{name} width"]
        known = ~np.isnan(width)
        summary |= {
            f"{name} known": float(known.mean()),
            f"{name} coverage": float((abs(error) < width)[known].mean()) if known.any() else np.nan,
            f"{name} error": float(1.96 * np.square(error).mean() ** 0.5),
            f"{name} width": float(np.square(width[known]).mean() ** 0.5) if known.any() else np.nan,
        }
    return summary


CASES = [Case(5, clips, shot, 1.0) for clips in (10, 20) for shot in (1, 5)]
CASES += [Case(5, 10, shot, 1.8) for shot in (1, 5)]
CASES += [Case(classes, 10, 5, 1.0) for classes in (6, 10, 24)]


def main(draws: int = 2000, cases: Sequence[int] = ()) -> str:
    """Measure the coverage of the intervals and return a table.

    Args:
        draws: data sets of each case.
        cases: numbers of the cases, from 0; empty for all.
    """
    rows = []
    for number in cases or range(len(CASES)):
        found = measure(CASES[number], draws, seed=number)
        cells = [
            "not known"
            if np.isnan(found[f"{name} coverage"])
            else f"{found[f'{name} coverage']:.1%} (± {100 * found[f'{name} width']:.1f} of "
            f"{100 * found[f'{name} error']:.1f})"
            for name in ("episodes", "clips", "classes", "episodes for clips")
        ]
        rows.append([CASES[number].name, f"{found['accuracy']:.1%}", *cells])
        tqdm.write(" | ".join([*rows[-1], f"{found['clips known']:.1%} known"]))
    return markdown_table(["test", "accuracy", "episodes", "clips", "classes", "episodes for clips"], rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(auto_cli(main, as_positional=False))
