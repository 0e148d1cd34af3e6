"""Time and memory of the heads at ResNet-50 size, compared with a literal implementation of the equations.

    python experiments/benchmarks/heads.py [--rounds 7] [--threads 2] [--cpu_time]

``head`` is everything from maps of 7 x 7 to logits; the other parts are its most expensive steps. The literal
implementation (tests/reference.py) concatenates tuples and loops over classes. Both run alternately; the ratio is the
median over the rounds. Peak memory of forward and backward is measured in a new process for each.
"""

import argparse
import gc
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
sys.path.insert(0, str(Path(__file__).parents[2]))
from strm_lightning.models.head import STRMHead
from strm_lightning.models.matching.qc import query_class_similarity
from strm_lightning.models.matching.trm import cross_transform
from tests import reference

WAY, SHOT, QUERIES, L, D, d = 5, 5, 25, 8, 2048, 1152
PARTS = ("head", "ple", "trm", "qc")
LABELS = torch.arange(WAY).repeat_interleave(SHOT)


def sides(part: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor], list[Tensor]]:
    """Return (ours, literal, leaves) of a part of the heads on random features of one 5-way 5-shot episode."""
    torch.manual_seed(0)
    head = STRMHead(D, match_dim=d).eval()
    state = dict(head.named_parameters())
    if part == "head":
        maps = torch.rand(WAY * SHOT + QUERIES, L, D, 7, 7)
        return (lambda: whole_head(head, maps)), (lambda: literal_head(state, maps)), list(state.values())
    support, query = torch.randn(WAY * SHOT, L, D, requires_grad=True), torch.randn(QUERIES, L, D, requires_grad=True)
    leaves = [support, query, *state.values()]
    if part == "ple":
        patches = torch.rand(10 * L, 16, D, requires_grad=True)
        return (
            lambda: head.ple(patches, pooled=True),
            lambda: reference.ple(state, patches, False).mean(1),
            [patches, *state.values()],
        )
    if part == "trm":
        return (
            lambda: cross_transform(*head.trm[0](query), *(t.unflatten(0, (WAY, SHOT)) for t in head.trm[0](support))),
            lambda: reference.trm(state, 0, 2, support, LABELS, query),
            leaves,
        )
    return (
        lambda: query_class_similarity(head.qc[0](query), head.qc[0](support).unflatten(0, (WAY, SHOT))),
        lambda: reference.qc(state, 0, 2, support, LABELS, query),
        leaves,
    )


def whole_head(head: STRMHead, maps: Tensor) -> Tensor:
    support, query = maps.split([WAY * SHOT, QUERIES])
    return head.match(head.enrich(support.unflatten(0, (WAY, SHOT))), head.enrich(query)).combined(0.1)


def literal_head(state: reference.State, maps: Tensor) -> Tensor:
    h, e = reference.features(state, maps)
    support, query = zip(*(x.split([WAY * SHOT, QUERIES]) for x in (h, e)), strict=True)
    trm, qc = reference.match(state, (2,), support, LABELS, query)
    assert qc is not None
    return trm + 0.1 * qc


def forward(side: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        side()


def forward_backward(side: Callable[[], Tensor]) -> None:
    out = side()
    (F.log_softmax(out, -1) if out.ndim == 2 else out).square().mean().backward()


def seconds(
    mode: Callable[[Callable[[], Tensor]], None],
    side: Callable[[], Tensor],
    leaves: list[Tensor],
    clock: Callable[[], float],
) -> float:
    for leaf in leaves:
        leaf.grad = None
    start = clock()
    mode(side)
    return clock() - start


def compare(part: str, rounds: int, clock: Callable[[], float] = time.perf_counter) -> None:
    ours, literal, leaves = sides(part)
    with torch.no_grad():
        torch.testing.assert_close(ours(), literal(), rtol=1e-3, atol=1e-3)
    for name, mode in (("forward", forward), ("forward+backward", forward_backward)):
        times: dict[str, list[float]] = {"ours": [], "literal": []}
        for _ in range(rounds + 1):
            times["ours"].append(seconds(mode, ours, leaves, clock))
            times["literal"].append(seconds(mode, literal, leaves, clock))
        mine, theirs = (median(runs[1:]) * 1e3 for runs in times.values())  # the first round warms up
        ratio = median(b / a for a, b in list(zip(*times.values(), strict=True))[1:])
        print(f"{part:<4} {name:<17} {mine:8.0f} ms   literal {theirs:8.0f} ms   {ratio:5.2f} x faster", flush=True)


def peak(part: str, side: str) -> float:
    """Measure the peak memory in MiB of forward and backward in a new process."""
    command = [sys.executable, __file__, "--peak", part, side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(part: str, side: str) -> None:
    ours, literal, _ = sides(part)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak memory counter
    before = memory("VmRSS")
    forward_backward(ours if side == "ours" else literal)
    print(memory("VmHWM") - before)


def memory(field: str) -> float:
    """Read a field of /proc/self/status in MiB."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cpu_time", action="store_true", help="CPU time of all threads, if the machine has other load"
    )
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print_peak(*options.peak)
        return
    sizes = f"5-way 5-shot, {QUERIES} queries, L {L}, D {D}, d {d}"
    of = "CPU time, " * options.cpu_time + f"medians of {options.rounds}, {options.threads} threads"
    print(f"{sizes}; {of}", flush=True)
    for part in options.parts:
        compare(part, options.rounds, time.process_time if options.cpu_time else time.perf_counter)
        mine, theirs = peak(part, "ours"), peak(part, "literal")
        print(f"{part:<4} peak memory       {mine:8.0f} MiB  literal {theirs:8.0f} MiB  {theirs / mine:5.2f} x less")


if __name__ == "__main__":
    main()
