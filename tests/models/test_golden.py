"""Equal to the released modules: their own inputs, weights, outputs and gradients, computed by running them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from strm_lightning.episode import VideoFeatures
from strm_lightning.models import STRMHead
from strm_lightning.models.official import convert_official

EXACT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(Path(__file__).parent / "golden_5w2s.safetensors")


@pytest.fixture
def head(golden: dict[str, Tensor]) -> STRMHead:
    head = STRMHead(32, match_dim=24, qc_dim=16, variant="official").double().eval()
    weights = convert_official({k.removeprefix("w."): v for k, v in golden.items() if k.startswith("w.")})
    head.load_state_dict({k.removeprefix("head."): v for k, v in weights.items()})
    for module, name in ((head.ple, "attn_pat"), (head.fle, "fr_enrich"), (head.trm[0], "transformers.0")):
        code = golden[f"w.{name}.pe.pe"][0, : len(module.position.code)]
        torch.testing.assert_close(module.position.code, code, rtol=0, atol=1e-6)
        module.position.code.copy_(code)
    return head


def clips(maps: Tensor) -> Tensor:
    return maps.unflatten(0, (-1, 8))


def by_class(features: VideoFeatures, labels: Tensor) -> VideoFeatures:
    order = torch.argsort(labels, stable=True)
    return VideoFeatures(
        patch_level=features.patch_level[order].unflatten(0, (5, -1)),
        frame_level=features.frame_level[order].unflatten(0, (5, -1)),
    )


def test_features_logits_loss_and_every_gradient(head: STRMHead, golden: dict[str, Tensor]) -> None:
    maps = golden["support_features"].clone().requires_grad_()
    support, query = head.enrich(clips(maps)), head.enrich(clips(golden["query_features"]))
    patches = head.ple(head.pool(clips(maps)).grid)
    torch.testing.assert_close(patches.flatten(0, 1), golden["ple_out"], **EXACT)
    torch.testing.assert_close(support.patch_level, golden["h"], **EXACT)
    torch.testing.assert_close(support.frame_level, golden["e"], **EXACT)

    logits = head.match(by_class(support, golden["support_labels"]), query)
    assert logits.qc is not None
    torch.testing.assert_close(logits.trm, golden["logits_tm"], **EXACT)
    torch.testing.assert_close(logits.qc, golden["logits_qc"], **EXACT)

    labels = golden["query_labels"]
    loss = F.cross_entropy(logits.trm, labels, reduction="sum") + 0.1 * F.cross_entropy(
        logits.qc, labels, reduction="sum"
    )
    torch.testing.assert_close(loss, golden["loss_sum"][0], **EXACT)

    loss.backward()
    torch.testing.assert_close(maps.grad, golden["support_grad"], **EXACT)
    expected = convert_official({k.removeprefix("g."): v for k, v in golden.items() if k.startswith("g.")})
    gradients = {f"head.{name}": parameter.grad for name, parameter in head.named_parameters()}
    # The release trains no weight of QC, so it has no gradient of them; those are held by the literal equations.
    assert gradients.keys() - expected.keys() == {"head.qc.0.linear.weight", "head.qc.0.linear.bias"}
    assert expected.keys() <= gradients.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, **EXACT)
