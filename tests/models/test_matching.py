"""The interface of matching methods: the registry, and what must hold for every registered method."""

import os
import subprocess
import sys
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from strm_lightning.episode import VideoFeatures
from strm_lightning.errors import InputError, InputTypeError
from strm_lightning.models import FeatureSpec, Matching, STRMHead, register_matching
from strm_lightning.models.matching import base, kernels
from strm_lightning.models.matching.base import build_matching, matching_names, matching_options
from strm_lightning.models.matching.shots import mean_over_shots

L, P, D, WAY, SHOT, QUERIES = 4, 2, 6, 3, 2, 5

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("trm", {}),
    ("mean", {}),
    ("mean", {"squared": True, "shots": "prototype"}),
    ("pairs", {}),
    ("pairs", {"tuple_size": 2, "positions": True}),
    ("max", {}),
    ("max", {"shots": "joint"}),
    ("diagonal", {}),
    ("diagonal", {"features": "patches", "eps": 0.0}),
    ("linear", {}),
    ("chamfer", {}),
    ("chamfer", {"shots": "joint", "tuple_size": 3, "tuple_dim": 7, "scale": 10.0, "learn_scale": True}),
    ("chamfer", {"direction": "query", "features": "patches", "tuple_dim": 5}),
    ("chamfer", {"direction": "support", "tuple_size": 2, "positions": True}),
    ("bi_mhm", {}),
    ("bi_mhm", {"shots": "joint", "eps": 0.0}),
    ("bi_mhm", {"shots": "prototype", "learn_scale": True}),
    ("otam", {}),
    ("otam", {"smoothing": 0.0, "features": "patches"}),
    ("otam", {"debias": True, "direction": "query"}),
    ("otam", {"tuple_size": 2, "tuple_dim": 5, "shots": "prototype", "scale": 5.0}),
    ("patches", {}),
    ("energy", {}),
    ("motionmap", {}),
    ("meanpatch", {}),
    ("lag", {}),
    ("lag", {"max_lag": 1, "tau": 10.0, "decay": 0.1, "proj_dim": 5, "dropout": 0.2, "scale": 4.0}),
    ("ridge", {}),
    ("ridge", {"features": "patches", "rho": 0.5, "scale": 3.0}),
    ("lag_energy", {}),
    ("lag_energy", {"mirror": True}),
    ("auto", {}),
    ("auto", {"mirror": True}),
    ("kernel_ridge", {}),
    ("kernel_ridge", {"kernels": ["lag", "meanpatch"], "ridge": 0.5}),
]


def name_of(value: object) -> str:
    return value if isinstance(value, str) else ", ".join(f"{k}={v}" for k, v in value.items()) or "defaults"


every_method = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=name_of)


def make(name: str, options: dict[str, Any] | None = None, **of_head: Any) -> STRMHead:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_frames": L, "patch_grid": P, "match_dim": 5, "tuple_sizes": (2, 3)}
    head = STRMHead(D, matching=name, matching_options=options, **sizes | of_head).double().eval()
    with torch.no_grad():
        for parameter in head.parameters():  # away from their first values, where gradients may be 0
            parameter.add_(0.1 * torch.rand_like(parameter))
    return head


def clips(*leading: int, seed: int = 1, dim: int = D) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*leading, L, dim, 4, 4, generator=generator, dtype=torch.float64)


def episode(head: STRMHead, *leading: int, way: int = WAY, shot: int = SHOT) -> tuple[VideoFeatures, VideoFeatures]:
    return head.enrich(clips(*leading, way, shot)), head.enrich(clips(*leading, QUERIES, seed=2))


def combined(head: STRMHead, *arguments: Any) -> Tensor:
    return head.match(*arguments).combined(1.0)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Matching]]:
    """A copy of the registry, without the methods of other tests."""
    copy = dict(base._registry)
    monkeypatch.setattr(base, "_registry", copy)
    return copy


@pytest.fixture
def untyped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users do not have the type checker of the tests, which would be first to refuse a wrong option."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


# Every method ---------------------------------------------------------------------------------------------------------


def test_every_registered_method_is_tested() -> None:
    assert {name for name, _ in VARIANTS} == set(matching_names())
    for name in matching_names():
        used = {option for other, options in VARIANTS for option in options if other == name}
        assert used <= matching_options(name).keys()
        assert build_matching(name, FeatureSpec(D, L, P * P)).options == {}


@every_method
def test_episodes_with_leading_axes_equal_one_by_one(name: str, options: dict[str, Any]) -> None:
    head = make(name, options)
    support, query = episode(head, 2, 3)
    mask = torch.ones(2, 3, WAY, SHOT, dtype=torch.bool)
    mask[1, 2, 0, 1] = mask[0, 1, 2, 0] = False
    for shots in (None, mask):
        together = combined(head, support, query, shots)
        assert together.shape == (2, 3, QUERIES, WAY)
        for b in ((0, 0), (0, 1), (1, 2)):
            alone = combined(head, support[b], query[b], None if shots is None else shots[b])
            torch.testing.assert_close(together[b], alone)
            for q in (0, 4):  # per_query: each query is matched by itself
                one = combined(head, support[b], query[b][[q]], None if shots is None else shots[b])
                torch.testing.assert_close(alone[[q]], one)
    assert head.matching.per_query


@every_method
@pytest.mark.parametrize("absent", [1e6, torch.nan, torch.inf])
def test_absent_clips_have_no_influence_on_values_and_gradients(
    name: str, options: dict[str, Any], absent: float
) -> None:
    head = make(name, options)
    mask = torch.tensor([[True, False], [True, True], [False, True]])
    clean, query = episode(head)
    found = []
    for value in (0.0, absent):
        leaves: list[Tensor] = []

        def leaf(tensor: Tensor, leaves: list[Tensor] = leaves) -> Tensor:
            leaves.append(tensor.detach().clone().requires_grad_())
            return leaves[-1]

        def spoil(tensor: Tensor, value: float = value) -> Tensor:
            return tensor.masked_fill(~mask.reshape(WAY, SHOT, *[1] * (tensor.ndim - 2)), value)

        logits = combined(head, clean.map(spoil).map(leaf), query.map(leaf), mask)
        weights = [p for part in (head.matching, head.qc) if part is not None for p in part.parameters()]
        weighted = (logits * torch.arange(float(QUERIES * WAY)).view(QUERIES, WAY)).sum()
        gradients = torch.autograd.grad(weighted, [*leaves, *weights], allow_unused=True, materialize_grads=True)
        encoded = {key: spoil(tensor) for key, tensor in head.encode(clean).items()}
        direct = head.match_encoded(encoded, head.encode(query), mask).combined(1.0)
        of_method = {key: tensor for key, tensor in encoded.items() if not key.startswith("qc.")}
        alone = head.matching.match(of_method, head.matching.encode(query), mask)
        with torch.inference_mode():
            tested = head.match_encoded(encoded, head.encode(query), mask).combined(1.0)
        found.append([logits, direct, tested, *alone.values(), *gradients])
    for with_zero, with_absent in zip(*found, strict=True):
        assert with_absent.isfinite().all()
        torch.testing.assert_close(with_zero, with_absent, rtol=0, atol=0)


@every_method
def test_a_mask_equals_leaving_clips_out(name: str, options: dict[str, Any]) -> None:
    head = make(name, options)
    support, query = episode(head, shot=3)
    mask = torch.tensor([True, False, True]).expand(WAY, 3)
    torch.testing.assert_close(combined(head, support, query, mask), combined(head, support[:, [0, 2]], query))


@every_method
def test_permuted_classes_permute_logits_and_shots_have_no_order(name: str, options: dict[str, Any]) -> None:
    head = make(name, options)
    support, query = episode(head)
    logits, order = combined(head, support, query), torch.tensor([2, 0, 1])
    assert (logits.amax(-1) - logits.amin(-1) > 1e-6).all()  # or any order would do
    torch.testing.assert_close(combined(head, support[order], query), logits[:, order])
    torch.testing.assert_close(combined(head, support[:, [1, 0]], query), logits)


@every_method
def test_per_class_is_true(name: str, options: dict[str, Any]) -> None:
    """Methods that say ``per_class`` give the same logits for some of the classes; the others do not."""
    head = make(name, options)
    support, query = episode(head)
    some = combined(head, support[:2], query)
    assert torch.allclose(some, combined(head, support, query)[:, :2]) == head.matching.per_class
    assert head.matching.per_class == (name not in ("ridge", "lag_energy", "kernel_ridge", "auto"))


@every_method
@pytest.mark.parametrize(("way", "shot"), [(1, 1), (1, 2), (3, 1)])
def test_one_class_and_one_shot(name: str, options: dict[str, Any], way: int, shot: int) -> None:
    head = make(name, options)
    logits = combined(head, *episode(head, way=way, shot=shot))
    assert logits.shape == (QUERIES, way)
    assert logits.isfinite().all()


@every_method
def test_precision_of_logits(name: str, options: dict[str, Any]) -> None:
    """Logits are in float32 at least, and bfloat16 features and weights cost no more digits than they lack."""
    head = make(name, options)
    maps = [m.bfloat16() for m in (clips(WAY, SHOT), clips(QUERIES, seed=2))]
    rounded = combined(head.bfloat16(), *map(head.enrich, maps))
    exact = combined(head.double(), *(head.enrich(m.double()) for m in maps))
    assert (exact.dtype, rounded.dtype) == (torch.float64, torch.float32)
    difference, spread = (exact - rounded).abs().max().item(), exact.std().item()
    assert difference < 0.15 * spread, f"{difference:.3g} of {spread:.3g}"


@every_method
def test_encoded_clips_give_the_logits_of_features(name: str, options: dict[str, Any]) -> None:
    head = make(name, options)
    support, query = episode(head)
    encoded = head.encode(support)
    assert all(tensor.shape[:2] == (WAY, SHOT) for tensor in encoded.values())
    logits, again = head.match(support, query), head.match_encoded(encoded, head.encode(query))
    torch.testing.assert_close((logits.trm, logits.qc), (again.trm, again.qc), rtol=0, atol=0)
    one = head.encode(support[1, 0])  # a clip without leading axes
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, encoded[key][1, 0])
    assert head.floats_per_pair(head.encode(query)) >= 1
    named = head.matching.match(head.matching.encode(support), head.matching.encode(query))
    torch.testing.assert_close(sum(named.values()), logits.trm)
    assert head.matching.options == ({"tuple_sizes": (2, 3), "match_dim": 5} if name == "trm" else options)


WITHOUT_CLIP_SCORES = ("trm", "ridge", "lag_energy", "kernel_ridge", "auto")


@every_method
def test_clip_scores_average_to_logits(name: str, options: dict[str, Any]) -> None:
    head = make(name, options)
    support, query = episode(head)
    own = {key: tensor.flatten(0, 1) for key, tensor in head.encode(support).items()}
    scores = head.clip_scores(own, head.encode(query))
    if name in WITHOUT_CLIP_SCORES or options.get("shots", "distance") != "distance":
        assert scores is None
        return
    assert scores is not None
    assert scores.shape == (QUERIES, WAY * SHOT)
    torch.testing.assert_close(mean_over_shots(scores, WAY), head.match(support, query).trm)
    with_qc = make(name, options, query_class=True)  # the sum of both is no mean over clips
    (support, query), first = episode(with_qc), head.encode(episode(head)[1])
    own = {key: tensor.flatten(0, 1) for key, tensor in with_qc.encode(support).items()}
    assert with_qc.clip_scores(own, with_qc.encode(query)) is None
    assert with_qc.encode(query).keys() == {*first, "qc.relations"}


@every_method
@pytest.mark.parametrize("masked", [False, True])
def test_scores_of_pairs_give_the_logits_of_episodes(name: str, options: dict[str, Any], masked: bool) -> None:
    head = make(name, options)
    support, query = episode(head)
    mask = torch.ones(WAY, SHOT, dtype=torch.bool)
    mask[1, 0] = not masked
    own = {key: tensor.flatten(0, 1) for key, tensor in head.encode(support).items()}
    cross = head.matching.pair_scores(own, head.encode(query))
    if name == "trm" or options.get("shots", "distance") != "distance":
        assert cross is None
        return
    of_support = head.matching.pair_scores(own, own)
    assert cross is not None
    assert of_support is not None
    assert all(scores.shape == (QUERIES, WAY * SHOT) for scores in cross.values())
    if masked and name == "ridge":  # its absent rows are 0
        present = mask.flatten()
        of_support = {key: scores * (present & present[:, None]) for key, scores in of_support.items()}
        cross = {key: scores * present for key, scores in cross.items()}
    logits = head.matching.match_scores(of_support, cross, WAY, mask)
    torch.testing.assert_close(logits, head.match(support, query, mask).trm)
    several = head.matching.match_scores(
        {key: scores.expand(2, -1, -1) for key, scores in of_support.items()},
        {key: scores.expand(2, -1, -1) for key, scores in cross.items()},
        WAY,
        mask.expand(2, -1, -1),
    )
    torch.testing.assert_close(several, logits.expand(2, -1, -1))


WITHOUT_EVIDENCE = ("mean", "energy", "motionmap", "meanpatch", "ridge")


@every_method
def test_evidence_adds_up_to_the_logit(name: str, options: dict[str, Any]) -> None:
    head = make(name, options)
    support, query = episode(head, shot=3)
    mask = torch.tensor([[True, False, True], [True, True, True], [False, True, False]])
    support, query = head.encode(support), head.encode(query)
    for shots in (None, mask):
        logits = head.match_encoded(support, query, shots).combined(1.0)
        for q, label in ((0, 0), (3, 1), (4, 2)):
            asked = {key: tensor[q] for key, tensor in query.items()}
            with torch.inference_mode():  # as the classifier calls it
                found = head.explain(support, asked, label, shots)
            if name in WITHOUT_EVIDENCE or options.get("shots") == "prototype":
                assert found == {}
                continue
            assert sum(evidence.logit for evidence in found.values()) == pytest.approx(logits[q, label].item())
            for evidence in found.values():
                present = 3 if shots is None else int(shots[label].sum())
                assert evidence.weights.shape == evidence.contributions.shape == (present, L, L)
                assert evidence.weights.min() >= 0
                assert evidence.weights.max() > 0
                assert evidence.clip_scores.shape == (present,)
                assert evidence.kind
    assert set(found) in ({*head.matching.match(support, query), *(("qc",) if name == "trm" else ())}, set())


LEARN = {"linear", "trm"}


@every_method
def test_every_parameter_gets_a_gradient(name: str, options: dict[str, Any]) -> None:
    head = make(name, options).train()
    assert head.learns == (name in LEARN or bool({"tuple_dim", "learn_scale", "proj_dim"} & options.keys()))
    on = {"query_class": True, "patch_enrichment": True}
    if "frame_level" in head.reads:
        on |= {"frame_enrichment": True, "patch_pooling": "layout"}
    for more in ({}, on | {"proj_dim": 5, "center_clip": True, "scale_clip": True}):
        head = make(name, options, **more).train()
        logits = combined(head, *episode(head))
        if not head.learns:
            assert not logits.requires_grad
            continue
        (logits * torch.randn_like(logits)).sum().backward()
        without = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not without
        assert {n for n, _ in head.named_parameters()} == set(head.state_dict())


def test_a_method_is_a_child_under_its_own_name() -> None:
    head = make("lag", {"proj_dim": 5})
    assert head.matching is head.lag
    assert head.matching_name == "lag"
    assert {"lag.project.weight", "lag.tau", "lag.decay"} == set(head.state_dict())
    assert not hasattr(head, "trm")


# Combinations with enrichment -----------------------------------------------------------------------------------------

FULL = {"patch_enrichment": True, "frame_enrichment": True, "query_class": True}


@pytest.mark.parametrize(
    ("name", "options", "of_head"),
    [
        ("otam", {}, FULL | {"patch_pooling": "layout", "proj_dim": 3, "center_clip": True, "scale_clip": True}),
        ("otam", {}, {"frame_enrichment": True}),
        ("otam", {}, {"patch_enrichment": True}),
        ("otam", {}, {"query_class": True}),
        ("otam", {}, {"patch_pooling": "layout"}),
        ("otam", {"features": "patches"}, {"patch_enrichment": True, "query_class": True, "patch_pooling": "layout"}),
        ("bi_mhm", {}, {"num_frames": 1, "tuple_sizes": (2,)}),  # Omega is not used, so it does not have to fit
        ("ridge", {}, {"proj_dim": 3, "variant": "official"}),
        ("patches", {}, {"patch_enrichment": True, "center_clip": True}),
        ("lag", {"proj_dim": 2}, {"proj_dim": 3, "scale_clip": True}),
        ("kernel_ridge", {}, {"query_class": True, "patch_pooling": "layout"}),
        ("trm", {}, {"query_class": False, "frame_enrichment": False}),
    ],
)
def test_combinations_that_are_accepted(name: str, options: dict[str, Any], of_head: dict[str, Any]) -> None:
    head, plain = make(name, options, **of_head), make(name, options, num_frames=of_head.get("num_frames", L))
    maps = clips(WAY, SHOT)[:, :, : head.num_frames], clips(QUERIES, seed=2)[:, : head.num_frames]
    logits = head.match(*map(head.enrich, maps))
    assert logits.trm.isfinite().all()
    assert (logits.qc is not None) == of_head.get("query_class", name == "trm")
    assert (head.ple is not None) == of_head.get("patch_enrichment", name == "trm")
    if head.state_dict().keys() != plain.state_dict().keys():  # a switch that is on has an effect
        other = plain.match(*map(plain.enrich, maps))
        assert not torch.equal(logits.combined(1.0), other.combined(1.0))


@pytest.mark.parametrize(
    ("name", "options", "of_head", "message"),
    [
        ("patches", {}, {"frame_enrichment": True}, "frame_enrichment has no effect with matching 'patches', which re"),
        ("patches", {}, FULL, "frame_enrichment has no effect .* reads patch_level, patches"),
        ("patches", {}, {"patch_pooling": "layout"}, "patch_pooling: layout has no effect with matching 'patches'"),
        ("otam", {"features": "patches"}, {"frame_enrichment": True}, "frame_enrichment has no effect .*'otam'"),
        ("trm", {"tuple_sizes": (2,)}, {}, r"matching_options \['tuple_sizes'\].* its options are model.tuple_sizes"),
        ("trm", {"smoothing": 0.1}, {}, r"\['smoothing'\].*an earlier YAML may have set options of another method"),
        ("otam", {"tau": 3.0}, {}, r"'otam' has no option 'tau'; its options are features, shots.*earlier YAML"),
        ("otam", {"smooting": 0.1}, {}, "'otam' has no option 'smooting'; did you mean 'smoothing'"),
        ("energy", {"scale": 2.0}, {}, "'energy' has no option 'scale'; it has none"),
        (
            "ottam",
            {},
            {},
            r"'ottam' is not registered: did you mean 'otam'\? registered are auto, bi_mhm, .*--import FILE",
        ),
        ("mine", {}, {}, "'mine' is not registered: .*registers your own"),
        ("qc", {}, {}, "'qc' is not registered"),
        ("otam", {}, {"query_class": True, "tuple_sizes": (5,)}, r"tuple_sizes \[5\].*from 1 to 4 \(time steps\)"),
        ("otam", {"features": "patch"}, {}, "features 'patch': did you mean 'patches'"),
        ("otam", {"direction": "back"}, {}, "direction 'back': choose 'both' or 'query' or 'support'"),
        ("otam", {"features": 3}, {}, "features 3: choose 'frames' or 'patches'"),
        ("otam", {"smoothing": "fast"}, {}, "matching_options: smoothing of 'otam' is 'fast': give a number"),
        ("otam", {"smoothing": None}, {}, "smoothing of 'otam' is None: give a number"),
        ("otam", {"smoothing": True}, {}, "smoothing of 'otam' is True: give a number"),
        ("otam", {"debias": 1}, {}, "debias of 'otam' is 1: give true or false"),
        ("otam", {"tuple_size": 2.5}, {}, "tuple_size of 'otam' is 2.5: give a whole number"),
        ("otam", {"tuple_dim": "8"}, {}, "tuple_dim of 'otam' is '8': give a whole number or null"),
        ("kernel_ridge", {"kernels": "lag"}, {}, "kernels of 'kernel_ridge' is 'lag': give a list"),
        ("otam", {"smoothing": -0.1}, {}, "smoothing is -0.1"),
        ("otam", {"shots": "joint"}, {}, "shots 'joint' is not defined for 'otam'"),
        ("chamfer", {"tuple_size": 5}, {}, "tuple_size is 5: give 1 to 4"),
        ("chamfer", {"tuple_dim": 0}, {}, "tuple_dim is 0"),
        ("bi_mhm", {"eps": -1.0}, {}, "eps is -1.0"),
        ("bi_mhm", {"scale": 0.0}, {}, "scale is 0.0"),
        ("lag", {"max_lag": -1}, {}, "max_lag is -1"),
        ("lag", {"tau": 0.0}, {}, "tau is 0.0"),
        ("lag", {"decay": -1.0}, {}, "decay is -1.0"),
        ("lag", {"dropout": 0.5}, {}, "dropout is 0.5: .*proj_dim"),
        ("lag", {"proj_dim": 0}, {}, "proj_dim is 0"),
        ("ridge", {"rho": -1.0}, {}, "rho is -1.0"),
        ("kernel_ridge", {"ridge": 0.0}, {}, "ridge is 0.0"),
        ("kernel_ridge", {"kernels": []}, {}, "each once"),
        ("kernel_ridge", {"kernels": ["lag", "lag"]}, {}, "each once"),
        ("kernel_ridge", {"kernels": ["lags"]}, {}, "kernels 'lags': did you mean 'lag'"),
    ],
)
def test_combinations_that_are_refused(
    name: str, options: dict[str, Any], of_head: dict[str, Any], message: str, untyped: None
) -> None:
    with pytest.raises(InputError, match=message) as error:
        make(name, options, **of_head)
    assert "\n" not in str(error.value)


def test_features_that_a_method_does_not_read_are_not_computed() -> None:
    head = make("patches")
    features = head.enrich(clips(2))
    assert features.patches is not None
    assert features.patch_level is features.frame_level is features.maps is None
    with pytest.raises(InputError, match="features have no 'patches', which matching 'patches' reads"):
        head.match(*episode(make("otam")))
    features = make("otam").enrich(clips(2))
    assert features.patches is features.maps is None


def test_dropout_of_lag_drops_channels_in_training_only() -> None:
    head = make("lag", {"proj_dim": 5, "dropout": 0.5})
    features = head.enrich(clips(2))
    first, again = head.encode(features), head.encode(features)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    head.train()
    torch.manual_seed(0)
    found = [head.encode(features)["patches"] for _ in range(3)]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


# The registry ---------------------------------------------------------------------------------------------------------


class Prototype(Matching):
    """The example of `matching.base`, with an option."""

    def __init__(self, spec: FeatureSpec, *, power: float = 1.0) -> None:
        super().__init__(spec)
        self.power = power

    def encode(self, clip: VideoFeatures) -> dict[str, Tensor]:
        assert clip.frame_level is not None
        return {"mean": clip.frame_level.mean(-2)}

    def match(
        self, support: dict[str, Tensor], query: dict[str, Tensor], shot_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        mask = torch.ones(support["mean"].shape[:-1], dtype=torch.bool) if shot_mask is None else shot_mask
        clips = torch.where(mask.unsqueeze(-1), support["mean"], 0)
        prototypes = clips.sum(-2) / mask.sum(-1, keepdim=True)
        return {"prototype": -(torch.cdist(query["mean"], prototypes) ** self.power)}


def test_an_own_method_is_built_by_its_name(registry: dict[str, type[Matching]]) -> None:
    register_matching("prototype")(Prototype)
    assert "prototype" in matching_names()
    assert matching_options("prototype") == {"power": 1.0}
    head = make("prototype", {"power": 2.0})
    assert isinstance(head.prototype, Prototype)
    assert (head.prototype.power, head.matching.options) == (2.0, {"power": 2.0})
    support, query = episode(head)
    squared = make("mean", {"squared": True, "shots": "prototype"})
    torch.testing.assert_close(combined(head, support, query), combined(squared, support, query))
    assert head.explain(head.encode(support), head.encode(query[0]), 0) == {}
    assert head.clip_scores(head.encode(support[0]), head.encode(query)) is None
    assert head.floats_per_pair(head.encode(query)) == D
    with pytest.raises(InputError, match="'prototype' has no option 'powre'; did you mean 'power'"):
        make("prototype", {"powre": 2.0})
    assert make("prototype", {"power": 2}).matching.options == {"power": 2}  # a whole number is a number


class OfMaps(Matching):
    """Reads the pooled maps of the backbone."""

    reads = frozenset({"maps"})

    def encode(self, clip: VideoFeatures) -> dict[str, Tensor]:
        assert clip.maps is not None
        return {"clip": clip.maps.mean.mean(-2) + clip.maps.grid.mean((-3, -2))}

    def match(
        self, support: dict[str, Tensor], query: dict[str, Tensor], shot_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        scores = query["clip"] @ support["clip"].flatten(-3, -2).mT
        return {"first": mean_over_shots(scores, support["clip"].shape[-3], shot_mask), "second": scores[..., :1] * 0}


def test_a_method_of_maps(registry: dict[str, type[Matching]]) -> None:
    register_matching("of_maps")(OfMaps)
    head = make("of_maps", center_clip=False)
    support, query = episode(head)
    assert support.maps is not None
    assert support.frame_level is support.patch_level is support.patches is None
    logits = head.match(support, query)
    named = head.matching.match(head.encode(support), head.encode(query))
    torch.testing.assert_close(logits.trm, named["first"] + named["second"])
    assert logits.trm.shape == (QUERIES, WAY)
    mask = torch.tensor([[True, False], [True, True], [False, True]])
    spoilt = support.map(lambda t: t.masked_fill(~mask.reshape(WAY, SHOT, *[1] * (t.ndim - 2)), torch.nan))
    torch.testing.assert_close(combined(head, spoilt, query, mask), combined(head, support, query, mask))
    assert combined(head, spoilt, query, mask).isfinite().all()
    for switch in (
        {"proj_dim": 3},
        {"patch_enrichment": True},
        {"patch_pooling": "layout"},
        {"frame_enrichment": True},
    ):
        with pytest.raises(InputError, match="has no effect with matching 'of_maps', which reads maps"):
            make("of_maps", **switch)


def test_a_name_is_registered_once(registry: dict[str, type[Matching]]) -> None:
    register_matching("prototype")(Prototype)
    with pytest.raises(InputError, match=r"'prototype' is registered twice: by .*\.Prototype and by .*\.OfMaps"):
        register_matching("prototype")(OfMaps)
    with pytest.raises(InputError, match=r"'otam' is registered twice: by strm_lightning.*\.OTAM and by"):
        register_matching("otam")(Prototype)
    assert registry["prototype"] is Prototype


def test_a_notebook_may_define_its_method_again(registry: dict[str, type[Matching]]) -> None:
    first, again = (type("Mine", (Prototype,), {"__module__": "__main__", "__qualname__": "Mine"}) for _ in range(2))
    other = type("Other", (Prototype,), {"__module__": "__main__", "__qualname__": "Other"})
    register_matching("mine")(first)
    register_matching("mine")(again)
    assert registry["mine"] is again
    with pytest.raises(InputError, match=r"registered twice: by __main__\.Mine and by __main__\.Other"):
        register_matching("mine")(other)


def unclear_options() -> dict[str, Any]:
    class Positional(Matching):
        def __init__(self, spec: FeatureSpec, power: float = 1.0) -> None:
            super().__init__(spec)

    class Required(Matching):
        def __init__(self, spec: FeatureSpec, *, power: float) -> None:
            super().__init__(spec)

    class Any_(Matching):
        def __init__(self, spec: FeatureSpec, **power: float) -> None:
            super().__init__(spec)

    class Several(Matching):
        def __init__(self, spec: FeatureSpec, *power: float) -> None:
            super().__init__(spec)

    return {kind.__name__: kind for kind in (Positional, Required, Any_, Several)}


@pytest.mark.parametrize("kind", unclear_options())
def test_options_are_keywords_with_defaults(registry: dict[str, type[Matching]], kind: str) -> None:
    with pytest.raises(InputError, match=r"option 'power' of .* must be keyword-only with a default value"):
        register_matching("mine")(unclear_options()[kind])
    assert "mine" not in registry


def test_what_is_no_method_is_refused(registry: dict[str, type[Matching]], untyped: None) -> None:
    class WithoutSpec(Matching):
        def __init__(self, *, power: float = 1.0) -> None:
            super().__init__(FeatureSpec(1, 1, 1))

    with pytest.raises(InputError, match=r"__init__ of .*WithoutSpec must take the spec first"):
        register_matching("mine")(WithoutSpec)
    with pytest.raises(InputTypeError, match=r"'mine': torch\.nn\.modules\.linear\.Linear is no subclass of Matching"):
        register_matching("mine")(torch.nn.Linear)  # type: ignore[type-var]
    for name in ("two words", "2d", "a.b", ""):
        with pytest.raises(InputError, match="a name consists of letters, digits and underscores"):
            register_matching(name)(Prototype)


@pytest.mark.parametrize("name", ["qc", "ple", "fle", "project", "reads", "dim", "matching", "enrich", "training"])
def test_a_name_that_the_head_has_is_refused(registry: dict[str, type[Matching]], name: str) -> None:
    register_matching(name)(Prototype)
    with pytest.raises(InputError, match=f"'{name}': the head has an attribute of that name; choose another name"):
        make(name)


COMPILE = """
import torch
from strm_lightning.models import STRMHead

for name, options in (("otam", {}), ("otam", {"features": "patches", "tuple_dim": 5}), ("kernel_ridge", {})):
    head = STRMHead(6, num_frames=4, patch_grid=2, matching=name, matching_options=options)
    def logits(support, query, mask):
        return head.match(head.enrich(support), head.enrich(query), mask).combined()
    compiled = torch.compile(logits, backend="eager", fullgraph=True)
    mask = torch.tensor([[True, False], [True, True], [False, True]])
    maps = torch.randn(3, 2, 4, 6, 4, 4, requires_grad=True), torch.randn(5, 4, 6, 4, 4)
    gradients = []
    for match in (logits, compiled):
        for shots in (None, mask):
            found = match(*maps, shots)
            gradients.append((found, *torch.autograd.grad(found.square().sum(), maps[:1])))
    torch.testing.assert_close(gradients[:2], gradients[2:])
"""


@pytest.mark.slow
def test_methods_compile_to_one_graph() -> None:
    """In a process of its own, since dynamo refuses to trace beartype's checks."""
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": "src"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("mirror", [False, True])
def test_sums_of_kernels_compare_stages_separately(mirror: bool) -> None:
    grids = [[clips(*axes, seed=seed, dim=dim) for dim in (5, 3)] for axes, seed in (((WAY, SHOT), 1), ((QUERIES,), 2))]
    maps = [torch.cat(parts, -3) for parts in grids]
    sizes = {"num_frames": L, "patch_grid": P, "matching_options": {"mirror": mirror}}
    for name, shot in (("lag_energy", 1), ("auto", 1), ("kernel_ridge", SHOT), ("auto", SHOT)):
        head = STRMHead((5, 3), matching=name, **sizes)
        support, query = head.encode(head.enrich(maps[0][:, :shot])), head.encode(head.enrich(maps[1]))
        parts = head.matching.match(support, query)
        separate = [STRMHead(dim, matching=name, **sizes) for dim in (5, 3)]
        encoded = [
            tuple(h.encode(h.enrich(m[i][:, :shot] if j == 0 else m[i])) for j, m in enumerate(grids))
            for i, h in enumerate(separate)
        ]
        if shot == 1:  # a sum of z-scores
            expected = sum(h.match_encoded(*pair).trm for h, pair in zip(separate, encoded, strict=True))
            torch.testing.assert_close(head.match_encoded(support, query).trm, expected)
            assert set(parts) == {"lag", "energy", "lag_2", "energy_2"}
            continue
        own, cross = [], []
        for h, (examples, asked) in zip(separate, encoded, strict=True):
            flat = {key: tensor.flatten(0, 1) for key, tensor in examples.items()}
            own += h.matching.pair_scores(flat, flat).values()
            cross += h.matching.pair_scores(flat, asked).values()
        torch.testing.assert_close(
            head.match_encoded(support, query).trm, kernels.weighted_kernel_ridge(own, cross, WAY), rtol=1e-4, atol=1e-5
        )
        assert len(parts) == 8
        assert head.matching.default_temperature([SHOT] * WAY) == 0.1
    assert STRMHead((5, 3), matching="lag_energy").matching.default_temperature([1]) == 2.0
    assert STRMHead((5, 3), matching="auto").matching.default_temperature([1, 1]) == 2.0
    projected = STRMHead((5, 3), matching="auto", proj_dim=4, num_frames=L, patch_grid=P)
    assert projected.matching.spec.stages == (4,)


@pytest.mark.parametrize("name", ["kernel_ridge", "auto"])
def test_sums_of_kernels_are_not_computed_for_absent_clips(name: str) -> None:
    """One class with many clips does not multiply the work for the others."""
    head = make(name)
    mask = torch.zeros(WAY, 20, dtype=torch.bool)
    mask[0], mask[1:, :2] = True, True
    support, query = (head.encode(features) for features in episode(head, shot=20))
    prepared = head.prepare(support, mask)
    assert prepared["similarities"].shape[-2:] == (24, 24)
    assert prepared["label"].tolist() == [0] * 20 + [1, 1, 2, 2]
    of_several = [{key: tensor[None] for key, tensor in encoded.items()} for encoded in (support, query)]
    expected = head.match_encoded(*of_several, mask[None]).trm[0]  # absent clips of several episodes stay, as zeros
    torch.testing.assert_close(head.match_prepared(prepared, query, mask).trm, expected)
