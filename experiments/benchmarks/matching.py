"""Time of matching methods on random frame features: OTAM against a double loop, and 10,000 episodes of every method.

    python experiments/benchmarks/matching.py [--part otam episodes] [--rounds 5] [--episodes 10000] [--threads 1]

``otam`` compares OTAM of this package with published code, which loops over the cells of the cost matrix for each
direction, on all pairs of an episode at once. Both run alternately and must return the same logits. The loop here uses
logsumexp, because the published code overflows.

``episodes`` matches 5-way 1-shot and 5-shot episodes with one query per class, 8 frames and 512 channels, from a bank
of random features. The draw is not timed. With ``--measured`` below ``--episodes`` the time is extrapolated.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from strm_lightning.models.matching.alignment import OPTIONS, frame_alignment, frame_cosines
from strm_lightning.models.matching.kernels import ridge, unit
from strm_lightning.models.matching.lag import lag_similarity
from strm_lightning.models.matching.shots import mean_over_shots

WAY, L, D, BANK = 5, 8, 512, 500
Match = Callable[[Tensor, Tensor], Tensor]


def cell_by_cell(cost: Tensor, smoothing: float) -> Tensor:
    """Compute ``d(C)`` of all pairs ``[..., Lq, Ls]`` with two loops over the cells of G."""
    rows, length = cost.shape[-2:]
    padded = torch.nn.functional.pad(cost, (1, 1))
    g = torch.zeros_like(padded)
    for j in range(1, length + 2):
        g[..., 0, j] = g[..., 0, j - 1] + padded[..., 0, j]
    for i in range(1, rows):
        for j in range(1, length + 2):
            before = [g[..., i - 1, j - 1], g[..., i, j - 1]]
            if j in (1, length + 1):
                before.append(g[..., i - 1, j])
            soft = -smoothing * torch.logsumexp(-torch.stack(before) / smoothing, 0)
            g[..., i, j] = padded[..., i, j] + soft
    return g[..., -1, -1]


def published_otam(support: Tensor, query: Tensor) -> Tensor:
    """Compute logits ``[..., Q, N]`` with lambda 0.1 in both directions."""
    cost = 1 - frame_cosines(support.flatten(-4, -3), query)
    distance = cell_by_cell(cost, 0.1) + cell_by_cell(cost.mT, 0.1)
    return -distance.unflatten(-1, support.shape[-4:-2]).mean(-1)


def otam(support: Tensor, query: Tensor) -> Tensor:
    return frame_alignment(support, query, "otam")


def ridge_of_clips(support: Tensor, query: Tensor) -> Tensor:
    return ridge(unit(support.flatten(-2)), unit(query.flatten(-2)))


def lag(support: Tensor, query: Tensor) -> Tensor:
    clips, queries = (unit(x, 2).unsqueeze(-2) for x in (support.flatten(-4, -3), query))  # one patch a frame
    return mean_over_shots(lag_similarity(clips, queries), support.shape[-4])


def methods() -> dict[str, Match]:
    """Return all methods by name."""

    def of(name: str, **options: object) -> Match:
        return lambda support, query: frame_alignment(support, query, name, **options)

    found = {name: of(name) for name in OPTIONS if name != "linear"}
    found["linear"] = of("linear", weight=torch.full((L, L), 1 / L**2))
    found["chamfer, joint triples"] = of("chamfer", shots="joint", tuple_size=3)
    found["otam, debiased"] = of("otam", debias=True)
    return found | {"ridge": ridge_of_clips, "lag": lag}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare_otam(rounds: int, shot: int, queries: int, *, backward: bool) -> float:
    """Print the median times of both implementations of OTAM; return their ratio."""
    torch.manual_seed(0)
    support, query = torch.randn(WAY, shot, L, D, requires_grad=backward), torch.randn(queries, L, D)
    torch.testing.assert_close(otam(support, query), published_otam(support, query), rtol=1e-4, atol=1e-4)

    def run(match: Match) -> None:
        with torch.set_grad_enabled(backward):
            logits = match(support, query)
        if backward:
            logits.square().mean().backward()

    times: dict[Match, list[float]] = {otam: [], published_otam: []}
    for _ in range(rounds + 1):
        for match, runs in times.items():
            runs.append(seconds(lambda match=match: run(match)))
    ours, theirs = (median(runs[1:]) * 1e3 for runs in times.values())  # the first round warms up
    what = f"OTAM 5-way {shot}-shot, {queries} queries, {'forward+backward' if backward else 'forward'}"
    print(f"{what:<56} {ours:8.2f} ms   cell by cell {theirs:8.2f} ms   {theirs / ours:5.1f} x faster")
    return theirs / ours


def time_episodes(episodes: int, measured: int, batch: int, shot: int) -> dict[str, float]:
    """Print and return the seconds of ``episodes`` episodes for each method."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(BANK, L, D, generator=generator)
    clips = WAY * (shot + 1)
    order = [torch.randperm(BANK, generator=generator)[:clips] for _ in range(batch)]
    drawn = bank[torch.stack(order)].unflatten(1, (WAY, shot + 1))
    support, query = drawn[:, :, :shot].contiguous(), drawn[:, :, shot].contiguous()
    totals = {}
    with torch.no_grad():
        for name, match in methods().items():
            match(support, query)
            batches = max(1, measured // batch)
            spent = seconds(lambda match=match, n=batches: [match(support, query) for _ in range(n)])
            totals[name] = spent * episodes / (batches * batch)
            print(f"{WAY}-way {shot}-shot  {name:<24} {totals[name]:8.2f} s for {episodes} episodes")
    return totals


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=["otam", "episodes"], default=["otam", "episodes"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--measured", type=int, help="episodes to run; default: all")
    parser.add_argument("--batch", type=int, default=50, help="episodes per call")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if "otam" in options.part:
        for shot, queries in ((1, 5), (5, 25)):
            for backward in (False, True):
                compare_otam(options.rounds, shot, queries, backward=backward)
    if "episodes" in options.part:
        for shot in (1, 5):
            time_episodes(options.episodes, options.measured or options.episodes, options.batch, shot)


if __name__ == "__main__":
    main()
