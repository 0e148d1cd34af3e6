"""STRMModule and EpisodeDataModule under a stock Trainer: learning, resuming, sharing the work."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F

from strm_lightning import EpisodeDataModule, STRMModule
from strm_lightning.episode import MatchLogits

SPLIT = {
    "train": ["left", "right", "up", "down"],
    "val": ["still", "rise"],
    "test": ["fall", "sink", "leap"],
}
# Lightning reads a name that torch has renamed, and recommends workers that tiny clips do not need.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty.*"),
]


def data(root: Path, **options: Any) -> EpisodeDataModule:
    settings: dict[str, Any] = {
        "way": 2, "shot": 1, "query_per_class": 2, "num_frames": 4, "image_size": 32, "train_episodes": 4,
        "val_episodes": 7, "test_episodes": 9, "num_workers": 0, "eval_batch_size": 2,
    }  # fmt: skip
    return EpisodeDataModule(str(root), SPLIT, **settings | options)


def module(**options: Any) -> STRMModule:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"pretrained": False, "num_frames": 4, "match_dim": 8, "lr": 0.01}
    return STRMModule("test_resnet", **settings | options)


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return L.Trainer(
        accelerator="cpu", default_root_dir=folder, **{"max_epochs": 2, "logger": False, **quiet, **options}
    )


class Losses(L.Callback):
    """The loss and the learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *args: Any) -> None:
        self.seen.append(outputs["loss"].item())

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def weights(module: L.LightningModule) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_fit_logs_saves_and_tests(actions: Path, tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="val/accuracy", mode="max", save_last=True, filename="best")
    run = trainer(tmp_path, logger=CSVLogger(tmp_path), callbacks=[best], log_every_n_steps=1)
    model, episodes = module(), data(actions)
    run.fit(model, datamodule=episodes)
    logged = run.callback_metrics.keys()
    assert {"train/loss", "train/loss_trm", "train/loss_qc", "train/accuracy", "val/accuracy", "val/ci95"} <= logged
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"best.ckpt", "last.ckpt"}

    found = run.test(model, datamodule=episodes, ckpt_path=best.best_model_path, verbose=False)[0]
    assert model.results is not None
    assert found["test/accuracy"] == pytest.approx(model.results.accuracy)
    assert model.results.index.tolist() == list(range(9))

    loaded = STRMModule.load_from_checkpoint(best.best_model_path, weights_only=True)
    assert loaded.hparams["pretrained"] is False
    best_weights = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    torch.testing.assert_close(loaded.state_dict(), best_weights)


def test_heads_learn_what_moves(actions: Path, tmp_path: Path) -> None:
    model = module(optimizer="adamw", lr=2e-3, freeze_backbone=True, center_clip=True, patch_pooling="layout")
    episodes = data(actions, train_episodes=160, batch_size=2, flip=False, image_size=96)
    losses = Losses()
    trainer(tmp_path, max_epochs=1, callbacks=[losses], limit_val_batches=0).fit(model, datamodule=episodes)
    assert sum(losses.seen[-20:]) < 0.6 * sum(losses.seen[:20])


@pytest.mark.parametrize("freeze", [False, True])
def test_a_run_cut_off_in_an_epoch_ends_as_if_it_had_not_been(actions: Path, tmp_path: Path, freeze: bool) -> None:
    """Dropout is on in these heads, episodes and the optimiser have state: all of it must come back."""
    options = {"optimizer": "adam", "schedule": "cosine", "freeze_backbone": freeze, "frozen_views": 2}
    whole = module(**options)
    trainer(tmp_path, enable_checkpointing=False).fit(whole, datamodule=data(actions))

    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer(tmp_path, callbacks=[saver]).fit(module(**options), datamodule=data(actions))
    for step in (2, 6):
        resumed = module(**options)
        resumed.load_state_dict({name: torch.zeros_like(t) for name, t in resumed.state_dict().items()})
        run = trainer(tmp_path, enable_checkpointing=False)
        run.fit(resumed, datamodule=data(actions), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert run.global_step == 8
        torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_bfloat16_trains(actions: Path, tmp_path: Path) -> None:
    model = module()
    before = weights(model)
    run = trainer(tmp_path, max_epochs=1, precision="bf16-mixed", enable_checkpointing=False)
    run.fit(model, datamodule=data(actions))
    changed = [name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])]
    assert any(name.startswith("model.head") for name in changed)
    assert all(tensor.isfinite().all() for tensor in weights(model).values())


def test_a_frozen_backbone_stays_and_its_bank_is_what_it_sees(actions: Path, tmp_path: Path) -> None:
    model, episodes = module(freeze_backbone=True), data(actions, flip=False, short_side=32)
    before = weights(model)
    banks: dict[str, Any] = {}
    keep = LambdaCallback(on_train_end=lambda run, module: banks.update(module._maps))
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, callbacks=[keep])
    run.fit(model, datamodule=episodes)
    assert not model._maps  # freed before a test takes memory of its own
    after = weights(model)
    assert all(torch.equal(after[n], before[n]) for n in before if "backbone" in n)
    assert not all(torch.equal(after[n], before[n]) for n in before if "head" in n)

    pixels = data(actions, evaluation="episodes", flip=False, short_side=32)
    pixels.setup("validate")
    episode = pixels.val_dataloader().dataset[0, 3]
    maps = model.model.pool(episode.query)
    torch.testing.assert_close(banks["val"].get(episode.query_ids)["grid"], maps.grid, rtol=1e-4, atol=1e-4)


def test_losses_are_the_papers_and_the_releases() -> None:
    torch.manual_seed(0)
    logits = MatchLogits(trm=torch.randn(3, 10, 5), qc=torch.randn(3, 10, 5))
    labels = torch.randint(5, (3, 10))

    def total(reduction: str) -> torch.Tensor:
        per_head = (
            F.cross_entropy(head.flatten(0, 1), labels.flatten(), reduction=reduction) for head in vars(logits).values()
        )
        trm, qc = per_head
        return trm + 0.1 * qc

    torch.testing.assert_close(module().losses(logits, labels)["loss"], total("mean"))
    torch.testing.assert_close(module(loss_reduction="sum").losses(logits, labels)["loss"], total("sum") / 3)


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(actions: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    run.fit(module(), datamodule=data(actions))
    path = tmp_path / "other.ckpt"
    run.save_checkpoint(path)
    with pytest.raises(ValueError, match=r"another model: \d+ tensors differ, such as 'model\.head") as caught:
        STRMModule.load_from_checkpoint(path, tuple_sizes=(2, 3))
    assert "\n" not in str(caught.value)


def test_schedules(actions: Path, tmp_path: Path) -> None:
    rates = {}
    for name in ("milestones", "one_cycle", "cosine", "constant"):
        model = module(schedule=name, milestones=[4], gamma=0.5, optimizer="sgd", momentum=0.9, freeze_backbone=True)
        losses = Losses()
        run = trainer(tmp_path, enable_checkpointing=False, limit_val_batches=0, callbacks=[losses])
        run.fit(model, datamodule=data(actions))
        rates[name] = losses.rates
    assert rates["milestones"] == pytest.approx([0.01] * 4 + [0.005] * 4)
    assert rates["constant"] == [0.01] * 8
    assert max(rates["one_cycle"]) == pytest.approx(0.01, rel=0.1)
    assert rates["one_cycle"][-1] < 1e-6
    assert rates["cosine"] == sorted(rates["cosine"], reverse=True)
    assert rates["cosine"][-1] < 1e-3


DDP = """
import json, sys
from pathlib import Path
import lightning as L
from tests.test_module import data, module, trainer

class Witness(L.Callback):
    def __init__(self): self.seen = []
    def on_train_batch_start(self, trainer, module, batch, index): self.seen += batch.query_ids.flatten(1).tolist()

if __name__ == "__main__":
    root, out, devices = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    witness = Witness()
    run = trainer(out, max_epochs=1, devices=devices, strategy="ddp" if devices > 1 else "auto", callbacks=[witness],
                  enable_checkpointing=False)
    model = module(lr=0.0)
    run.validate(model, datamodule=data(root), verbose=False)
    results = model.results
    run.test(model, datamodule=data(root, test_episodes=10, test_shots=[1, 3]), verbose=False)
    run.fit(model, datamodule=data(root))
    (out / f"{devices}-{run.global_rank}.json").write_text(json.dumps(
        {"seen": witness.seen, "accuracy": results.accuracy, "predicted": results.predicted.tolist(),
         "report": {k: v for k, v in model.report.items() if k != "timing"}}))
"""


def test_several_processes_find_what_one_finds(actions: Path, tmp_path: Path) -> None:
    """Neither 7 nor 10 episodes divide by 2 and 3; training shares out as many as do."""
    script = tmp_path / "run.py"
    script.write_text(DDP)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["src", "."]), "OMP_NUM_THREADS": "1"}
    for devices in ("1", "2", "3"):
        command = [sys.executable, "-W", "ignore", str(script), str(actions), str(tmp_path), devices]
        done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    ranks = {n: [json.loads((tmp_path / f"{n}-{rank}.json").read_text()) for rank in range(n)] for n in (1, 2, 3)}
    one = ranks[1][0]
    assert one["report"]["episodes"] == 10
    for found in (found for several in ranks.values() for found in several):
        assert all(found[name] == one[name] for name in ("accuracy", "predicted", "report"))
    seen = {n: [{tuple(rows) for rows in found["seen"]} for found in several] for n, several in ranks.items()}
    assert len(seen[1][0]) == 4
    assert set.union(*seen[2]) == seen[1][0]
    assert set.union(*seen[3]) < seen[1][0]
    assert all(sum(map(len, several)) == len(set.union(*several)) for several in seen.values())


def test_training_may_have_more_ways_than_a_test(actions: Path) -> None:
    episodes = data(actions, train_way=4)
    episodes.setup("fit")
    assert episodes.train_dataloader().dataset[0, 0].class_ids.shape == (4,)
    assert episodes.val_dataloader().dataset[0, 0].class_ids.shape == (2,)
    with pytest.raises(ValueError, match=r"5-way .* needs 5 classes; the train split has 4"):
        data(actions, train_way=5).setup("fit")
