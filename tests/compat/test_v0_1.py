"""Files that version 0.1 wrote still load: a checkpoint with optimiser state, a frame cache, a bank and examples.

`v0_1/` was made by version 0.1 itself: 18 clips of 40 x 32 pixels, STRM on timm's `test_resnet` (frozen), tuples of
two and three frames, Adam with a one-cycle schedule, dropout switched off; saved after 4 of 12 steps. `expected.json`
holds what 0.1 computed from it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from strm_lightning import EpisodeDataModule, FewShotClassifier, STRMModule

FILES = Path(__file__).parent / "v0_1"
EXPECTED = json.loads((FILES / "expected.json").read_text())
SPLIT = {"train": ["left", "right"], "val": ["up", "down"], "test": ["rise", "fall"]}
QUERIES = [str(FILES / "videos" / name / "2.mp4") for name in ("left", "right", "up")]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*produced with Lightning v.*"),  # newer than the lowest version
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
]


def data(root: Path = FILES / "videos", **options: Any) -> EpisodeDataModule:
    settings: dict[str, Any] = {
        "way": 2, "shot": 1, "query_per_class": 2, "num_frames": 4, "image_size": 32, "train_episodes": 6,
        "val_episodes": 4, "test_episodes": 20, "num_workers": 0, "eval_batch_size": 2,
    }  # fmt: skip
    return EpisodeDataModule(str(root), SPLIT, **settings | options)


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return L.Trainer(accelerator="cpu", default_root_dir=folder, logger=False, **quiet, **options)


class Losses(L.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *args: Any) -> None:
        self.seen.append(outputs["loss"].item())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The backbone of the checkpoint as a file of its own."""
    state = torch.load(FILES / "step4.ckpt", weights_only=True)["state_dict"]
    prefix = "model.backbone.net."
    save_file(
        {name.removeprefix(prefix): t.contiguous() for name, t in state.items() if name.startswith(prefix)},
        tmp_path / "backbone.safetensors",
    )
    return tmp_path / "backbone.safetensors"


def test_a_checkpoint_resumes_with_its_optimiser_state(tmp_path: Path) -> None:
    module = STRMModule(
        "test_resnet", pretrained=False, num_frames=4, match_dim=4, proj_dim=4, lr=0.05, scale_clip=True,
        optimizer="adam", schedule="one_cycle", tuple_sizes=[2, 3], freeze_backbone=True,
    )  # fmt: skip
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    losses = Losses()
    run = trainer(tmp_path, max_epochs=2, callbacks=[losses], enable_checkpointing=False)
    run.fit(module, datamodule=data(), ckpt_path=FILES / "step4.ckpt")
    torch.testing.assert_close(losses.seen, EXPECTED["losses_from_step_4"], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_gives_the_same_logits_and_test(tmp_path: Path) -> None:
    module = STRMModule.load_from_checkpoint(FILES / "step4.ckpt").eval()
    clips = torch.from_numpy(np.random.default_rng(1).integers(0, 255, (6, 4, 3, 32, 32), dtype=np.uint8))
    with torch.no_grad():
        logits = module.model(clips[:2].unflatten(0, (2, 1)), clips[2:])
    torch.testing.assert_close(logits.trm, torch.tensor(EXPECTED["trm"]), rtol=1e-4, atol=1e-5)
    assert logits.qc is not None
    torch.testing.assert_close(logits.qc, torch.tensor(EXPECTED["qc"]), rtol=1e-4, atol=1e-5)
    shutil.copytree(FILES / "banks", tmp_path / "banks")  # of another format: a new bank is made beside it
    module.bank_dir = str(tmp_path / "banks")
    trainer(tmp_path).test(module, datamodule=data(), verbose=False)
    assert module.report is not None
    assert module.report["per_episode"]["predicted"] == EXPECTED["predicted"]
    assert module.report["accuracy"] == pytest.approx(EXPECTED["accuracy"])


def test_a_cache_is_read(tmp_path: Path) -> None:
    module = STRMModule.load_from_checkpoint(FILES / "step4.ckpt")
    trainer(tmp_path).test(module, datamodule=data(FILES / "cache", short_side=32), verbose=False)
    assert module.report is not None
    assert module.report["episodes"] == 20
    assert 0 <= module.report["accuracy"] <= 1


def test_examples_of_a_trained_model_are_read() -> None:
    classifier = FewShotClassifier.from_checkpoint(FILES / "step4.ckpt").load(FILES / "trained.safetensors")
    check(classifier, EXPECTED["trained"])


def test_examples_of_a_backbone_are_read(weights: Path) -> None:
    sizes = {"num_frames": 4, "image_size": 32}
    classifier = FewShotClassifier.from_backbone("test_resnet", weights=weights, matching="patches", **sizes)
    check(classifier.load(FILES / "patches.safetensors"), EXPECTED["patches"])


def check(classifier: FewShotClassifier, expected: list[dict[str, float]]) -> None:
    assert classifier.classes_.tolist() == ["left", "right", "up"]
    for found, wanted in zip(classifier.predict_many(QUERIES), expected, strict=True):
        assert list(found.probabilities) == list(wanted)
        assert found.probabilities == pytest.approx(wanted, abs=1e-3)
