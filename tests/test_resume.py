"""Runs that are cut off anywhere, gradient accumulation included, end with the weights of a run that was not."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from strm_lightning.errors import InputError
from strm_lightning.training.checkpoints import LastCheckpoint
from tests.test_module import data, module, trainer, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty.*"),
]
OPTIONS: dict[str, Any] = {"optimizer": "adam", "schedule": "one_cycle", "freeze_backbone": True}


def fit(root: Path, folder: Path, every: int, **options: Any) -> tuple[L.Trainer, Any]:
    """Two epochs of 8 episodes, or of 20 for an accumulation of 16."""
    path, model = options.pop("ckpt_path", None), module(**OPTIONS)
    run = trainer(folder, accumulate_grad_batches=every, limit_val_batches=0, **options)
    run.fit(model, datamodule=data(root, train_episodes=8 if every < 8 else 20), ckpt_path=path)
    return run, model


class Saved(L.Callback):
    """Keep a checkpoint after each of these batches, counted over epochs."""

    def __init__(self, folder: Path, batches: tuple[int, ...]) -> None:
        self.folder, self.batches = folder, batches

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if done in self.batches:
            trainer.save_checkpoint(self.folder / f"{done}.ckpt")


@pytest.mark.parametrize(("every", "batches"), [(3, (2, 3, 4, 7, 9, 13)), (16, (5, 16, 18, 33))])
def test_a_checkpoint_inside_an_accumulation_resumes_exactly(
    actions: Path, tmp_path: Path, every: int, batches: tuple[int, ...]
) -> None:
    _, whole = fit(actions, tmp_path, every, enable_checkpointing=False, callbacks=[Saved(tmp_path, batches)])
    for batch in batches:
        path = tmp_path / f"{batch}.ckpt"
        in_epoch = (batch - 1) % (8 if every < 8 else 20) + 1
        inside = "pending_gradients" in torch.load(path, weights_only=True)
        assert inside == (in_epoch % every != 0)
        _, resumed = fit(actions, tmp_path, every, enable_checkpointing=False, ckpt_path=path)
        torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_another_accumulation_is_refused_inside_one(actions: Path, tmp_path: Path) -> None:
    fit(actions, tmp_path, 3, enable_checkpointing=False, max_epochs=1, callbacks=[Saved(tmp_path, (2, 3))])
    with pytest.raises(InputError, match=r"within a gradient accumulation with accumulate_grad_batches 3.*here .* 4"):
        fit(actions, tmp_path, 4, enable_checkpointing=False, ckpt_path=tmp_path / "2.ckpt")
    run, _ = fit(actions, tmp_path, 4, enable_checkpointing=False, max_epochs=1, ckpt_path=tmp_path / "3.ckpt")
    assert run.global_step == 3


def test_last_checkpoint_is_of_an_optimiser_step(actions: Path, tmp_path: Path) -> None:
    class Witness(LastCheckpoint):
        def _save_last_checkpoint(self, trainer: L.Trainer, *_: Any) -> None:
            written.append((trainer.fit_loop.epoch_loop.total_batch_idx + 1, trainer.lightning_module._accumulated))

    class Clock(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            due = trainer.fit_loop.epoch_loop.total_batch_idx + 1 >= 4
            last._last_time_checked = time.monotonic() - (3600.0 if due else 0.0)

    written: list[tuple[int, int]] = []
    last = Witness(minutes=60.0)
    fit(actions, tmp_path, 3, callbacks=[Clock(), last])
    assert [batch for batch, _ in written][:5] == [6, 8, 11, 14, 16]
    assert not any(pending for _, pending in written)


RUN = """
import os, signal, sys, time
from datetime import timedelta
from pathlib import Path
import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.test_resume import fit

class Kill(L.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.fit_loop.epoch_loop.total_batch_idx == 12:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer, *_):
        due = trainer.fit_loop.epoch_loop.total_batch_idx == 11
        user._last_time_checked = time.monotonic() - (3600 if due else 0)

root, folder = Path(sys.argv[1]), Path(sys.argv[2])
user = ModelCheckpoint(folder, save_last=True, train_time_interval=timedelta(hours=1), enable_version_counter=False)
fit(root, folder, 3, callbacks=[user, Kill()])
"""


def test_a_killed_run_goes_on_from_a_users_checkpoint(actions: Path, tmp_path: Path) -> None:
    """Lightning writes checkpoints by time anywhere: the last one before the kill is inside an accumulation."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["src", "."]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(actions), str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["pending_gradients"]["batches"] == 1  # batch 12 is the fourth of its epoch
    _, resumed = fit(actions, tmp_path, 3, enable_checkpointing=False, ckpt_path=tmp_path / "last.ckpt")
    _, whole = fit(actions, tmp_path, 3, enable_checkpointing=False)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_dropout_follows_the_seed(actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(seed: int | None, **options: Any) -> dict[str, torch.Tensor]:
        monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
        model = module(**OPTIONS)  # the same first weights for all
        if seed is not None:
            L.seed_everything(seed, verbose=False)
        path = options.pop("ckpt_path", None)
        run = trainer(tmp_path, max_epochs=1, limit_val_batches=0, enable_checkpointing=False, **options)
        run.fit(model, datamodule=data(actions), ckpt_path=path)
        return weights(model)

    first, again, other = run(0, callbacks=[Saved(tmp_path, (2,))]), run(0), run(1)
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert any(not torch.equal(other[name], first[name]) for name in first)
    resumed = run(1, ckpt_path=tmp_path / "2.ckpt")
    torch.testing.assert_close(resumed, first, rtol=0, atol=0)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_a_schedule_without_an_end_is_refused(actions: Path, tmp_path: Path, schedule: str) -> None:
    run = trainer(tmp_path, max_epochs=None, max_time=timedelta(seconds=60), enable_checkpointing=False)
    with pytest.raises(InputError, match=rf"schedule '{schedule}'.*set trainer.max_epochs or trainer.max_steps"):
        run.fit(module(schedule=schedule, freeze_backbone=True), datamodule=data(actions))
