"""Two nodes on the loopback address: one is killed, both resume, and the result is that of one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.test_module import data, module, trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
OPTIONS = {"optimizer": "adam", "freeze_backbone": True}

# Each node has one process, started by its own launcher. Node 1 is killed in the second epoch of the first run.
NODE = """
import os, signal, sys
from pathlib import Path
import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.test_module import data, module, trainer
from tests.test_nodes import OPTIONS

class Kill(L.Callback):
    def on_train_epoch_start(self, trainer, *_):
        if not ckpt and trainer.current_epoch == 1 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

root, folder, ckpt = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
saved = ModelCheckpoint(folder, save_last=True, enable_version_counter=False)
run = trainer(folder, devices=1, num_nodes=2, strategy="ddp", limit_val_batches=0, callbacks=[saved, Kill()])
model = module(**OPTIONS)
run.fit(model, datamodule=data(root), ckpt_path=ckpt[0] if ckpt else None)
(accuracy,) = [value for name, value in run.test(model, datamodule=data(root))[0].items() if name == "test/accuracy"]
if run.is_global_zero:
    torch.save({"weights": model.state_dict(), "accuracy": accuracy}, folder / "found.pt")
"""


def launch(tmp_path: Path, *arguments: str) -> list[tuple[int, str]]:
    """Run both launchers to their end; return the exit status and the messages of each."""
    (tmp_path / "node.py").write_text(NODE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", "."]), "OMP_NUM_THREADS": "1"}
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d",
        f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=test", "--local_addr=127.0.0.1",
    ]  # fmt: skip
    command = [*launcher, str(tmp_path / "node.py"), *arguments]
    nodes = [
        subprocess.Popen(
            command, env=environment, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    messages = [node.communicate()[0] for node in nodes]
    return [(node.returncode, said) for node, said in zip(nodes, messages, strict=True)]


def test_two_nodes_resume_after_a_kill_and_match_one_process(actions: Path, tmp_path: Path) -> None:
    killed = launch(tmp_path, str(actions), str(tmp_path))
    assert all(status for status, _ in killed)
    assert not (tmp_path / "found.pt").exists()
    last = tmp_path / "last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] == 0, killed[0][1][-2000:]

    for status, said in launch(tmp_path, str(actions), str(tmp_path), str(last)):
        assert status == 0, said[-3000:]
    found = torch.load(tmp_path / "found.pt", weights_only=True)

    # One process with two episodes in an optimiser step has the same mean gradient.
    alone = trainer(tmp_path, limit_val_batches=0, enable_checkpointing=False, accumulate_grad_batches=2)
    model = module(**OPTIONS)
    alone.fit(model, datamodule=data(actions))
    for name, tensor in weights(model).items():
        torch.testing.assert_close(
            found["weights"][name], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    model.load_state_dict(found["weights"])
    assert alone.test(model, datamodule=data(actions))[0]["test/accuracy"] == pytest.approx(found["accuracy"])
