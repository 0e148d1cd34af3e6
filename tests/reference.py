"""STRM written as slowly and literally as the equations stand: tuples concatenated, one class after the other.

It shares nothing with the package but the names of the weights, which it takes from a state dict of `STRMHead`.
"""

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def position_code(length: int, dim: int, like: Tensor) -> Tensor:
    code = torch.zeros(length, dim)
    frequency = torch.exp(torch.arange(0, dim, 2).float() * -(torch.log(torch.tensor(10000.0)) / dim))
    for position in range(length):
        code[position, 0::2] = torch.sin(position * frequency) * 0.1
        code[position, 1::2] = torch.cos(position * frequency)[: dim // 2] * 0.1
    return code.to(like)


def ple(state: State, x: Tensor, official: bool) -> Tensor:
    """Patches [F, PP, D] of F frames: f = psi(a) + a, a = softmax(q k^T / sqrt(D)) v + x."""
    if official:
        x = x + position_code(x.shape[1], x.shape[2], x)
    q, k, v = (linear(state, f"ple.{name}", x) for name in ("query", "key", "value"))
    scores = torch.matmul(q, k.transpose(1, 2))
    attended = torch.matmul(torch.softmax(scores if official else scores / x.shape[-1] ** 0.5, dim=-1), v)
    a = (state["ple.gate"] * attended if official else attended) + x
    hidden = torch.relu(linear(state, "ple.psi.0", a))
    hidden = torch.relu(linear(state, "ple.psi.2", hidden))
    return linear(state, "ple.psi.4", hidden) + a


def fle(state: State, h: Tensor, official: bool) -> Tensor:
    """Clips [V, L, D]: H* = relu(H^T W_t1) W_t2 + H^T, E = relu(H*^T W_r1) W_r2 + H*^T."""
    if official:
        h = h + position_code(h.shape[1], h.shape[2], h)
    t = h.transpose(1, 2)
    star = linear(state, "fle.mix_frames.2", torch.relu(linear(state, "fle.mix_frames.0", t))) + t
    back = star.transpose(1, 2)
    return linear(state, "fle.mix_channels.2", torch.relu(linear(state, "fle.mix_channels.0", back))) + back


def concatenated_tuples(frames: Tensor, size: int) -> Tensor:
    """Clips [V, L, D] -> [V, T, size * D], each ordered tuple written out."""
    tuples = combinations(range(frames.shape[1]), size)
    return torch.stack([torch.cat([frames[:, i] for i in members], dim=-1) for members in tuples], dim=1)


def trm(state: State, index: int, size: int, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    """Support E [S, L, D] with labels [S], query E [Q, L, D] -> logits [Q, N]."""
    name = f"trm.{index}"
    code = position_code(support.shape[1], support.shape[2], support)
    support, query = concatenated_tuples(support + code, size), concatenated_tuples(query + code, size)
    width = state[f"{name}.key.weight"].shape[0]
    norm = state[f"{name}.norm_key.weight"], state[f"{name}.norm_key.bias"]
    s_key, q_key = (F.layer_norm(linear(state, f"{name}.key", x), (width,), *norm) for x in (support, query))
    s_value, q_value = (linear(state, f"{name}.value", x) for x in (support, query))
    columns = []
    for c in labels.unique():
        key, value = s_key[labels == c].flatten(0, 1), s_value[labels == c].flatten(0, 1)
        attention = torch.softmax(torch.matmul(q_key, key.T) / width**0.5, dim=-1)
        prototype = torch.matmul(attention, value)
        columns.append(-((q_value - prototype) ** 2).sum(-1).mean(-1))
    return torch.stack(columns, dim=1)


def qc(state: State, index: int, size: int, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    """Support H [S, L, D] with labels [S], query H [Q, L, D] -> M [Q, N]."""
    name = f"qc.{index}.linear"
    s = torch.relu(linear(state, name, concatenated_tuples(support, size)))
    q = torch.relu(linear(state, name, concatenated_tuples(query, size)))
    columns = []
    for c in labels.unique():
        tuples = s[labels == c].flatten(0, 1)
        distance = (
            torch.norm(q[:, :, None, :] - tuples[None, None], dim=-1)
            if q.numel() < 2**20
            else torch.cdist(q.flatten(0, 1), tuples).unflatten(0, q.shape[:2])
        )
        columns.append((-distance).max(-1).values.mean(-1))
    return torch.stack(columns, dim=1)


def features(
    state: State,
    maps: Tensor,
    *,
    grid: int = 4,
    official: bool = False,
    patch_enrichment: bool = True,
    frame_enrichment: bool = True,
    center_clip: bool = False,
    scale_clip: bool = False,
    layout: bool = False,
) -> tuple[Tensor, Tensor]:
    """Maps [V, L, D, h, w] -> H and E, both [V, L, D]."""
    if center_clip:
        maps = maps - maps.mean(1, keepdim=True)
    pooled = F.adaptive_max_pool2d(maps.flatten(0, 1), (grid, grid))
    patches = pooled.flatten(2).transpose(1, 2)
    mean = maps.flatten(0, 1).mean((-1, -2))
    if scale_clip:
        size = patches.unflatten(0, maps.shape[:2]).square().mean((1, 2, 3)).sqrt().repeat_interleave(maps.shape[1])
        patches, mean = patches / size[:, None, None], mean / size[:, None]
    if "project.weight" in state:
        patches, mean = linear(state, "project", patches), linear(state, "project", mean)
    if patch_enrichment:
        patches = ple(state, patches, official)
        mean = patches.mean(1)
    if layout:
        small = [linear(state, "layout.reduce", patches[:, p]) for p in range(grid * grid)]
        mean = mean + linear(state, "layout.expand", torch.cat(small, dim=-1))
    h = mean.unflatten(0, maps.shape[:2])
    return h, fle(state, h, official) if frame_enrichment else h


def match(
    state: State,
    sizes: tuple[int, ...],
    support: tuple[Tensor, Tensor],
    labels: Tensor,
    query: tuple[Tensor, Tensor],
    query_class: bool = True,
    official: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(H, E) of support [S, L, D] and queries [Q, L, D] -> TM logits and QC's M, both [Q, N].

    The paper sums M over Omega; the released code averages it.
    """
    tm = sum(trm(state, i, w, support[1], labels, query[1]) for i, w in enumerate(sizes)) / len(sizes)
    if not query_class:
        return tm, None
    m = sum(qc(state, i, w, support[0], labels, query[0]) for i, w in enumerate(sizes))
    return tm, m / len(sizes) if official else m
