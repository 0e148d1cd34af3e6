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


def cosine(x: Tensor, y: Tensor, eps: float) -> Tensor:
    """cos(x, y) = <x, y> / (|x| |y| + eps) of two vectors."""
    return (x * y).sum() / (x.square().sum().sqrt() * y.square().sum().sqrt() + eps)


def similarities(query: Tensor, clip: Tensor, eps: float) -> Tensor:
    """S_ij of the frames of two clips [Lq, D] and [Ls, D]."""
    return torch.stack([torch.stack([cosine(x, y, eps) for y in clip]) for x in query])


def soft_min(values: list[Tensor], smoothing: float) -> Tensor:
    stacked = torch.stack(values)
    return -smoothing * torch.logsumexp(-stacked / smoothing, 0) if smoothing else stacked.min()


def otam(cost: Tensor, smoothing: float) -> Tensor:
    """d(C) of one pair of clips, cell by cell."""
    rows, length = cost.shape
    zero = torch.zeros((), dtype=cost.dtype)
    c = [[zero, *row, zero] for row in cost]  # a column of zeros on the left and on the right
    g = [[sum(c[0][: j + 1], start=zero) for j in range(length + 2)]]
    for i in range(1, rows):
        row = [zero]
        row.append(c[i][1] + soft_min([g[i - 1][0], g[i - 1][1], row[0]], smoothing))
        for j in range(2, length + 1):
            row.append(c[i][j] + soft_min([g[i - 1][j - 1], row[j - 1]], smoothing))
        row.append(soft_min([g[i - 1][length], g[i - 1][length + 1], row[length]], smoothing))
        g.append(row)
    return g[rows - 1][length + 1]


def otam_distance(x: Tensor, y: Tensor, eps: float, direction: str, smoothing: float, debias: bool) -> Tensor:
    cost = 1 - similarities(x, y, eps)
    parts = {"query": [cost], "support": [cost.T], "both": [cost, cost.T]}[direction]
    found = sum(otam(part, smoothing) for part in parts)
    if debias:
        own = sum(otam_distance(z, z, eps, direction, smoothing, False) for z in (x, y))
        return found - own / 2
    return found


def clip_score(
    query: Tensor,
    clip: Tensor,
    method: str,
    *,
    eps: float = 0.01,
    direction: str = "both",
    smoothing: float = 0.1,
    squared: bool = False,
    weight: Tensor | None = None,
    debias: bool = False,
) -> Tensor:
    """The score of a query [Lq, D] and the frames of a clip, or of several side by side, [Ls, D]."""
    if method == "mean":
        a, b = query.mean(0), clip.mean(0)
        return -((a - b) ** 2).sum() if squared else cosine(a, b, eps)
    if method == "otam":
        return -otam_distance(query, clip, eps, direction, smoothing, debias)
    s = similarities(query, clip, eps)
    by_query, by_support = s.max(1).values, s.max(0).values
    if method == "chamfer":
        halves = {"query": by_query.mean(), "support": by_support.mean()}
        return halves.get(direction, (by_query.mean() + by_support.mean()) / 2)
    if method == "linear":
        return (weight.reshape(s.shape) * s).sum()
    return {
        "pairs": s.sum(1).mean(),
        "max": s.max(),
        "diagonal": s.diagonal().mean(),
        "bi_mhm": -((1 - by_query).sum() + (1 - by_support).sum()),
    }[method]


def alignment(
    support: list[Tensor], query: Tensor, method: str, *, shots: str = "distance", tuple_size: int = 1, **options
) -> Tensor:
    """Support: for each class its clips [K, Ls, D]; queries [Q, Lq, D] -> logits [Q, N], one pair after the other."""
    rows = []
    for q in concatenated_tuples(query, tuple_size):
        row = []
        for clips in support:
            if shots == "prototype":
                clips = clips.mean(0, keepdim=True)
            clips = concatenated_tuples(clips, tuple_size)
            if shots == "joint":
                clips = clips.flatten(0, 1)[None]
            row.append(torch.stack([clip_score(q, clip, method, **options) for clip in clips]).mean())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def ridge(support: list[Tensor], query: Tensor, rho: float) -> Tensor:
    """Support: for each class its clips as unit vectors [K, F]; queries [Q, F] -> logits [Q, N]."""
    v = torch.cat(support)
    y = torch.block_diag(*(torch.ones(len(clips), 1, dtype=v.dtype) for clips in support))
    return query @ v.T @ torch.linalg.inv(v @ v.T + rho * torch.eye(len(v), dtype=v.dtype)) @ y


def lag(query: Tensor, clip: Tensor, max_lag: int, temperature: float, decay: float) -> Tensor:
    """The soft maximum over shifts of two unit clips [L, P, D]."""
    above, below = [], []
    for d in range(-max_lag, max_lag + 1):
        overlap = [t for t in range(len(query)) if 0 <= t + d < len(clip)]
        if overlap:
            s = sum((query[t] * clip[t + d]).sum() for t in overlap)
            w = torch.exp(torch.tensor(-decay * abs(d), dtype=query.dtype))
            above.append(w * torch.exp(temperature * s))
            below.append(w)
    return torch.log(sum(above) / sum(below)) / temperature


def descriptions(grid: Tensor) -> dict[str, Tensor]:
    """Unit vectors that describe one clip's pooled maps [L, P, D]."""
    x = grid - grid.mean(0)
    e = (x**2).sum(-1).sqrt()
    found = {
        "unit_patches": x,
        "energy": e - e.mean(),
        "motionmap": (x**2).mean(0).sqrt(),
        "meanpatch": grid.mean(0),
    }
    return {name: d / (d**2).sum().sqrt() for name, d in found.items()}


def weighted_kernel_ridge(own: list[Tensor], cross: list[Tensor], labels: list[int], share: float = 0.1) -> Tensor:
    """Kernels [S, S] and [Q, S], with the class of each support clip -> logits [Q, N]."""
    size = len(labels)
    centring = torch.eye(size, dtype=own[0].dtype) - 1 / size
    total, total_cross = torch.zeros_like(own[0]), torch.zeros_like(cross[0])
    for k, c in zip(own, cross, strict=True):
        k_centred = centring @ k @ centring
        c_centred = (c - k.mean(0)) @ centring
        scale = k_centred.diagonal().mean()
        k_centred, c_centred = k_centred / scale, c_centred / scale
        groups: dict[bool, list[Tensor]] = {True: [], False: []}
        for i, j in combinations(range(size), 2):
            groups[labels[i] == labels[j]].append(k_centred[i, j])
        weight = 0.001
        if groups[True] and groups[False]:
            within, between = torch.stack(groups[True]), torch.stack(groups[False])
            squares = ((within - within.mean()) ** 2).sum() + ((between - between.mean()) ** 2).sum()
            d = (within.mean() - between.mean()) / (squares / (len(within) + len(between) - 2)).sqrt()
            weight = max(0.0, float(d)) ** 2 + 0.001
        total, total_cross = total + weight * k_centred, total_cross + weight * c_centred
    values, vectors = torch.linalg.eigh(total)
    total = vectors @ torch.diag(values.clamp_min(0)) @ vectors.T
    targets = F.one_hot(torch.tensor(labels)).to(total.dtype)
    penalty = share * total.diagonal().mean() * torch.eye(size, dtype=total.dtype)
    return total_cross @ torch.linalg.inv(total + penalty) @ targets
