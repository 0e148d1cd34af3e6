"""The heads against the literal equations, and what must hold whatever the weights are."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from strm_lightning.episode import VideoFeatures
from strm_lightning.models import STRMHead
from strm_lightning.models.enrichment.pooling import pool_maps
from strm_lightning.models.matching.qc import query_class_similarity
from tests import reference

CASES = {
    "paper": {},
    "official": {"variant": "official", "qc_dim": 5},
    "official {2, 3}": {"variant": "official", "qc_dim": 5, "tuple_sizes": (2, 3), "num_frames": 4},
    "1-way 1-shot": {"way": 1, "shot": 1, "queries": 1},
    "many ways": {"way": 7, "shot": 2, "queries": 3},
    "four frames": {"num_frames": 4, "way": 3},
    "triples": {"tuple_sizes": (3,), "num_frames": 5},
    "Omega {1, 2, 4}": {"tuple_sizes": (1, 2, 4), "num_frames": 4, "shot": 3},
    "whole clips": {"tuple_sizes": (4,), "num_frames": 4},
    "TRX": {"patch_enrichment": False, "frame_enrichment": False, "query_class": False},
    "TRX {2, 3}": {"patch_enrichment": False, "frame_enrichment": False, "query_class": False, "tuple_sizes": (2, 3)},
    "no PLE": {"patch_enrichment": False},
    "no FLE": {"frame_enrichment": False},
    "beyond the paper": {"center_clip": True, "scale_clip": True, "patch_pooling": "layout", "proj_dim": 6},
    "centred and scaled means": {
        "center_clip": True,
        "scale_clip": True,
        "patch_enrichment": False,
        "query_class": False,
    },
    "layout without PLE": {"patch_enrichment": False, "patch_pooling": "layout"},
    "odd channels": {"dim": 9, "patch_grid": 3},
}


def make(dim: int = 10, **options: object) -> STRMHead:
    torch.manual_seed(0)
    head = STRMHead(dim, match_dim=7, **options).double().eval()
    for parameter in head.parameters():  # gates and norms away from their trivial start
        torch.nn.init.normal_(parameter, std=0.5)
    return head


def clip_maps(*leading: int, dim: int = 10, num_frames: int = 8, size: int = 7) -> Tensor:
    return torch.randn(*leading, num_frames, dim, size, size, dtype=torch.float64)


def joint_loss(trm: Tensor, qc: Tensor | None, labels: Tensor) -> Tensor:
    # Far logits would leave softmax's gradient empty.
    losses = [
        F.cross_entropy(logits / logits.detach().abs().max(), labels) for logits in (trm, qc) if logits is not None
    ]
    return sum(losses, start=trm.mean())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_literal_equations(case: dict) -> None:
    case = dict(case)
    way, shot, queries, dim = (case.pop(k, v) for k, v in (("way", 5), ("shot", 2), ("queries", 4), ("dim", 10)))
    head = make(dim, **case)
    support, query = (clip_maps(n, dim=dim, num_frames=head.num_frames) for n in (way * shot, queries))
    labels = torch.arange(way).repeat_interleave(shot)

    settings = {
        "grid": head.patch_grid,
        "official": case.get("variant") == "official",
        "patch_enrichment": case.get("patch_enrichment", True),
        "frame_enrichment": case.get("frame_enrichment", True),
        "center_clip": case.get("center_clip", False),
        "scale_clip": case.get("scale_clip", False),
        "layout": case.get("patch_pooling") == "layout",
    }
    state = dict(head.named_parameters())
    support.requires_grad_()
    s, q = (reference.features(state, maps, **settings) for maps in (support, query))
    query_class, official = case.get("query_class", True), case.get("variant") == "official"
    tm, qc = reference.match(state, head.tuple_sizes, s, labels, q, query_class, official)

    mine = head.enrich(support.unflatten(0, (way, shot))), head.enrich(query)
    torch.testing.assert_close(mine[1].patch_level, q[0])
    torch.testing.assert_close(mine[1].frame_level, q[1])
    logits = head.match(*mine)
    torch.testing.assert_close(logits.trm, tm)
    torch.testing.assert_close(logits.qc, qc) if qc is not None else None
    assert (logits.qc is None) == (qc is None)

    answers = torch.arange(queries) % way
    gradients = [
        torch.autograd.grad(joint_loss(*both, answers), [support, *state.values()], allow_unused=True)
        for both in ((logits.trm, logits.qc), (tm, qc))
    ]
    for name, mine, theirs in zip(["maps", *state], *gradients, strict=True):
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            torch.testing.assert_close(
                mine, theirs, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.fixture
def head() -> STRMHead:
    return make(num_frames=4, tuple_sizes=(2, 3))


@pytest.fixture
def episode(head: STRMHead) -> tuple[VideoFeatures, VideoFeatures]:
    return head.enrich(clip_maps(3, 2, num_frames=4)), head.enrich(clip_maps(5, num_frames=4))


def test_permuting_classes_permutes_logits(head: STRMHead, episode: tuple) -> None:
    support, query = episode
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        head.match(support[order], query).combined(), head.match(support, query).combined()[:, order]
    )


def test_order_of_shots_does_not_matter(head: STRMHead, episode: tuple) -> None:
    support, query = episode
    torch.testing.assert_close(head.match(support[:, [1, 0]], query).combined(), head.match(support, query).combined())


def test_order_of_frames_matters(head: STRMHead) -> None:
    maps = clip_maps(2, 1, num_frames=4)
    query = head.enrich(maps[0].flip(1))
    logits = head.match(head.enrich(maps), query).combined()
    assert (logits - head.match(head.enrich(maps), head.enrich(maps[0])).combined()).abs().max() > 1e-3


def test_an_episode_does_not_see_its_neighbours(head: STRMHead) -> None:
    support, query = clip_maps(2, 3, 2, num_frames=4), clip_maps(2, 5, num_frames=4)
    together = head.match(head.enrich(support), head.enrich(query))
    for b in range(2):
        alone = head.match(head.enrich(support[b]), head.enrich(query[b]))
        torch.testing.assert_close(together.trm[b], alone.trm)
        torch.testing.assert_close(together.qc[b], alone.qc)


def test_leading_axes_none_one_and_several(head: STRMHead) -> None:
    maps = clip_maps(2, 3, 3, 2, num_frames=4)
    support, query = head.enrich(maps), head.enrich(clip_maps(2, 3, 5, num_frames=4))
    assert support.patch_level.shape == support.frame_level.shape == (2, 3, 3, 2, 4, 10)
    torch.testing.assert_close(head.enrich(maps[1, 2, 0, 1]).frame_level, support.frame_level[1, 2, 0, 1])
    mask = torch.ones(2, 3, 3, 2, dtype=torch.bool)
    mask[1, 2, 0, 1] = False
    logits = head.match(support, query, mask)
    assert logits.trm.shape == logits.qc.shape == (2, 3, 5, 3)
    alone = head.match(support[1, 2], query[1, 2], mask[1, 2])
    torch.testing.assert_close(logits.trm[1, 2], alone.trm)
    torch.testing.assert_close(logits.qc[1, 2], alone.qc)
    torch.testing.assert_close(logits.combined(), logits.trm + 0.1 * logits.qc)


def test_wrong_masks_are_refused(head: STRMHead, episode: tuple) -> None:
    right = torch.ones(3, 2, dtype=torch.bool)
    for wrong in (right[:2], right[:, :1]):
        with pytest.raises(ValueError, match=r"needs booleans"):
            head.match(*episode, wrong)


def test_masked_shots_are_as_if_absent(head: STRMHead, episode: tuple) -> None:
    support, query = episode
    mask = torch.tensor([[True, False], [True, True], [False, True]])
    masked = head.match(support, query, mask).combined()
    for c, keep in enumerate(mask):
        alone = head.match(support[c : c + 1, keep], query).combined()
        torch.testing.assert_close(masked[:, c : c + 1], alone)
    with pytest.raises(ValueError, match="without any support"):
        head.match(support, query, mask & torch.tensor([[True], [True], [False]]))


@pytest.mark.parametrize("absent", [1e6, torch.nan, torch.inf])
def test_absent_shots_have_no_influence_on_values_and_gradients(head: STRMHead, absent: float) -> None:
    mask = torch.tensor([[True, False], [True, True], [False, True]])
    maps, query = clip_maps(3, 2, num_frames=4), head.enrich(clip_maps(5, num_frames=4)).frame_level.detach()
    clean = head.enrich(maps).frame_level.detach()
    found = []
    for value in (0.0, absent):
        support = clean.masked_fill(~mask[..., None, None], value).requires_grad_()
        asked = query.clone().requires_grad_()
        pair = (VideoFeatures(patch_level=x, frame_level=x) for x in (support, asked))
        logits = head.match(*pair, mask)
        inputs = [support, asked, *head.trm.parameters(), *head.qc.parameters()]
        found.append([logits.trm, logits.qc, *torch.autograd.grad(logits.combined().sum(), inputs)])
    for with_zero, with_absent in zip(*found, strict=True):
        torch.testing.assert_close(with_zero, with_absent, rtol=0, atol=0)
    # Nor from encoded clips that are in a bank or a support file already.
    encoded = [head.encode(VideoFeatures(patch_level=x, frame_level=x)) for x in (clean, query)]
    spoilt = {name: x.masked_fill(~mask[..., None, None], absent) for name, x in encoded[0].items()}
    mine, theirs = head.match_encoded(spoilt, encoded[1], mask), head.match_encoded(*encoded, mask)
    torch.testing.assert_close((mine.trm, mine.qc), (theirs.trm, theirs.qc), rtol=0, atol=0)


@pytest.mark.parametrize("gradient", [False, True])
def test_distances_far_from_zero_keep_their_digits(gradient: bool) -> None:
    torch.manual_seed(0)
    query, support = torch.randn(3, 28, 64).double() + 1000, torch.randn(2, 5, 28, 64).double() + 1000
    expected = query_class_similarity(query, support)
    with torch.set_grad_enabled(gradient):
        found = query_class_similarity(query.float(), support.float())
    exact = -torch.cdist(query, support.flatten(1, 2)[:, None], compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(expected, exact.amax(-1).mean(-1).mT)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("tuples", [1, 6, 28])  # fewer and more than the step of the rows that define the origin
def test_absent_shots_do_not_move_the_origin_of_distances(tuples: int) -> None:
    """In float32, an origin far from all points would cost the distances their digits."""
    torch.manual_seed(0)
    mask = torch.tensor([[True, False], [True, True], [False, True]])
    support, query = torch.randn(3, 2, tuples, 9) + 100, torch.randn(4, tuples, 9) + 100
    exact = query_class_similarity(query.double(), support.double(), mask)
    spoilt = support.masked_fill(~mask[..., None, None], 1e6)
    torch.testing.assert_close(query_class_similarity(query, spoilt, mask).double(), exact, rtol=1e-4, atol=0)


EXPORT = """
import torch
from torch.export import Dim, export
from strm_lightning.episode import VideoFeatures
from strm_lightning.models import STRMHead


class Match(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = STRMHead(16, match_dim=12, num_frames=4).eval()

    def forward(self, support, query):
        support, query = (VideoFeatures(patch_level=x, frame_level=x) for x in (support, query))
        return self.head.match(support, query).combined()


module = Match()
way, shot, queries = Dim("way", min=2), Dim("shot", min=2), Dim("queries", min=2)
example = torch.randn(5, 2, 4, 16), torch.randn(7, 4, 16)
exported = export(module, example, dynamic_shapes=({0: way, 1: shot}, {0: queries})).module()
for n, k, q in ((2, 2, 2), (5, 5, 25), (9, 3, 4)):
    support, query = torch.randn(n, k, 4, 16), torch.randn(q, 4, 16)
    torch.testing.assert_close(exported(support, query), module(support, query))
"""


@pytest.mark.slow
def test_matching_exports_for_any_way_shot_and_queries() -> None:
    """Four frames make 6 tuples: with 2 queries there are fewer than the 25 rows at which cdist changes its way."""
    run_script(EXPORT)


@pytest.mark.parametrize("options", [{}, {"variant": "official"}, {"center_clip": True, "patch_pooling": "layout"}])
def test_every_parameter_is_saved_and_learns(options: dict) -> None:
    torch.manual_seed(0)
    head = STRMHead(16, match_dim=12, num_frames=4, tuple_sizes=(2, 3), **options)
    logits = head.match(head.enrich(torch.randn(3, 2, 4, 16, 7, 7)), head.enrich(torch.randn(6, 4, 16, 7, 7)))
    labels = torch.arange(6) % 3
    assert logits.qc is not None
    (F.cross_entropy(logits.trm, labels) + 0.1 * F.cross_entropy(logits.qc, labels)).backward()
    # The gate of the official code is 0 at the start, so that the weights of the attention have no gradient yet.
    closed = (
        {f"ple.{n}.{k}" for n in ("query", "key", "value") for k in ("weight", "bias")} if "variant" in options else {}
    )
    # A shift of all keys changes all scores of a query tuple alike, and so no softmax.
    without = {n for n, p in head.named_parameters() if p.grad is None or (n not in closed and not p.grad.abs().sum())}
    assert not without
    assert {n for n, _ in head.named_parameters()} == set(head.state_dict())


def test_bfloat16_stays_close() -> None:
    torch.manual_seed(0)
    head = STRMHead(64, match_dim=48).eval()
    support, query = torch.randn(5, 2, 8, 64, 7, 7), torch.randn(10, 8, 64, 7, 7)
    exact = head.match(head.enrich(support), head.enrich(query))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head.match(head.enrich(support), head.enrich(query))
    for a, b in ((exact.trm, rounded.trm), (exact.qc, rounded.qc)):
        spread = a.std().item()
        assert b.dtype == torch.float32
        assert (a - b.float()).abs().max() < 0.25 * spread
    assert (exact.combined().argmax(-1) == rounded.combined().argmax(-1)).float().mean() >= 0.9


def test_half_precision_keeps_the_digits_of_distances() -> None:
    """Logits come from sums over channels and tuples, which do not fit bfloat16 even where the weights are in it."""
    torch.manual_seed(0)
    head = STRMHead(64, match_dim=48).eval()
    maps = torch.randn(5, 2, 8, 64, 7, 7), torch.randn(10, 8, 64, 7, 7)
    exact = head.match(*map(head.enrich, maps))
    rounded = head.bfloat16().match(*(head.enrich(m.bfloat16()) for m in maps))
    for a, b in ((exact.trm, rounded.trm), (exact.qc, rounded.qc)):
        assert b.dtype == torch.float32
        assert (a - b).abs().max() < 0.25 * a.std()


COMPILE = """
import torch
from strm_lightning.models import STRMHead

head = STRMHead(16, match_dim=12, num_frames=4).eval()
enrich, match = (torch.compile(f, fullgraph=True, dynamic=True) for f in (head.enrich, head.match))
for way, shot, queries in ((3, 2, 4), (5, 3, 7)):
    support, query = torch.randn(way, shot, 4, 16, 7, 7), torch.randn(queries, 4, 16, 7, 7)
    mask = torch.ones(way, shot, dtype=torch.bool)
    mask[0, 0] = False
    support[0, 0] = torch.nan if way == 3 else 1e6
    for shots in (mask,) if way == 3 else (None, mask):
        compiled = match(enrich(support), enrich(query), shots).combined()
        plain = head.match(head.enrich(support), head.enrich(query), shots).combined()
        torch.testing.assert_close(compiled, plain)
"""


@pytest.mark.slow
def test_heads_compile_whole_and_for_any_episode() -> None:
    """One graph without breaks, for other ways, shots and queries too, with and without a mask."""
    run_script(COMPILE)


COMPILE_TRAINING = """
import torch
from strm_lightning.models import STRM

model = STRM("test_resnet", pretrained=False, num_frames=4, match_dim=8, qc_dim=8)
compiled = torch.compile(model, backend="aot_eager")
for size in (32, 64):  # maps of 1x1 and of 2x2
    compiled(torch.rand(2, 1, 4, 3, size, size), torch.rand(2, 4, 3, size, size)).combined().square().mean().backward()
assert all(parameter.grad is not None for parameter in model.parameters())
"""


@pytest.mark.slow
def test_a_training_step_compiles_on_maps_of_one_place() -> None:
    run_script(COMPILE_TRAINING)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (2, 2), (7, 7)])
def test_patches_have_the_strides_that_compiled_graphs_expect(size: tuple[int, int]) -> None:
    """`torch.compile` infers strides on fake tensors; where the kernels give others, its views fail."""
    norm = torch.nn.BatchNorm2d(6)

    def strides(frames: Tensor) -> tuple[tuple[int, ...], ...]:
        pooled = pool_maps(norm(frames).unflatten(0, (2, 4)), 4)
        return pooled.grid.stride(), pooled.mean.stride()

    frames = torch.randn(8, 6, *size).to(memory_format=torch.channels_last)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        expected = strides(mode.from_tensor(frames))
    assert strides(frames) == expected


@pytest.mark.parametrize("options", [{}, {"center_clip": True, "scale_clip": True}])
def test_maps_of_one_place_are_pooled_like_larger_ones(options: dict) -> None:
    maps = torch.randn(2, 4, 6, 1, 1, dtype=torch.float64, requires_grad=True)
    pooled = pool_maps(maps, 3, **options), pool_maps(maps.expand(-1, -1, -1, 2, 2), 3, **options)
    torch.testing.assert_close(vars(pooled[0]), vars(pooled[1]))
    weight = torch.randn(2, 4, 9, 6, dtype=torch.float64)
    found = [torch.autograd.grad((each.grid * weight).sum(), maps)[0] for each in pooled]
    torch.testing.assert_close(*found)


def run_script(script: str) -> None:
    """Run it in a process of its own: here beartype looks into every call, which dynamo refuses to trace."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": "src"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuple_sizes": (2, 9)}, r"tuple_sizes \[2, 9\].*from 1 to 8 \(time steps\)"),
        ({"tuple_sizes": ()}, "one or more"),
        ({"tuple_sizes": (2, 2)}, "different sizes"),
        ({"match_dim": 0}, "match_dim is 0"),
        ({"patch_grid": 0}, "patch_grid is 0"),
        ({"qc_dim": 0}, "qc_dim is 0"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        STRMHead(8, **options)


def test_a_clip_without_motion_stays_finite() -> None:
    head = make(num_frames=4, center_clip=True, scale_clip=True)
    still = clip_maps(1, num_frames=4)[:, :1].expand(-1, 4, -1, -1, -1)
    assert head.enrich(still).frame_level.isfinite().all()


def test_wrong_shapes_are_refused(head: STRMHead, episode: tuple) -> None:
    with pytest.raises(ValueError, match=r"takes \[\.\.\., 4, 10, h, w\]"):
        head.enrich(clip_maps(2, num_frames=5))
    with pytest.raises(ValueError, match="support features"):
        head.match(episode[1], episode[1])
