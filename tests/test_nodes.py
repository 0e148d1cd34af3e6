"""Two machines, as far as one allows: two launchers on the loopback address with one process each."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_cli import TINY

pytestmark = pytest.mark.slow
LIMIT = 300  # seconds for a run of two nodes; most of it is the import of torch and Lightning
END = 60  # seconds in which a node ends after the other one was killed
LAUNCH = "-m torch.distributed.run --nnodes=2 --nproc-per-node=1 --node-rank={rank} --master-addr=127.0.0.1"
NODES = ("--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp")
FIT = (
    *TINY,
    "--trainer.max_epochs=3",
    "--data.train_episodes=8",  # four steps of two nodes an epoch
    "--data.val_episodes=3",
    "--last_checkpoint.minutes=0.0001",  # after every step
    "--test_after_fit=false",
)
# The killed node stops at a batch, so that the other one waits for its gradients.
PAUSE = '''
import os
import time
from pathlib import Path

import lightning as L


class Pause(L.Callback):
    """Wait on one node at the start of a batch, until the process is killed."""

    def __init__(self, node: int, batch: int, file: str) -> None:
        self.node, self.batch, self.file = node, batch, file

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.node_rank == self.node and trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            Path(self.file).write_text(str(os.getpid()))
            time.sleep(600)
'''


def start(folder: Path, arguments: list[str], name: str) -> subprocess.Popen[bytes]:
    """Start a Python process in a folder; its output goes to ``NAME.log``."""
    paths = [str(Path(__file__).parents[1] / "src"), str(folder)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        "STRM_CACHE": str(folder / "cache"),
    }
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment, stdout=log, stderr=log)


@contextmanager
def nodes(folder: Path, *arguments: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start a command on two nodes; kill what is left of them at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [f"--master-port={port}", "-m", "strm_lightning", *arguments, *NODES]
    started = [start(folder, [*LAUNCH.format(rank=rank).split(), *command], f"node{rank}") for rank in (0, 1)]
    try:
        yield started
    finally:
        for launcher in started:
            kill(launcher)


def kill(launcher: subprocess.Popen[bytes]) -> None:
    """Kill a node at once: the launcher and its process, which is in a session of its own."""
    workers = children(launcher.pid)
    if launcher.poll() is None:
        launcher.kill()
        launcher.wait()
    for worker in workers:
        os.kill(worker, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Return the running processes that a process has started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:  # it has ended
        return []


def run_nodes(folder: Path, *arguments: str) -> None:
    """Run a command on two nodes to its end."""
    with nodes(folder, *arguments) as started:
        ends = [launcher.wait(LIMIT) for launcher in started]
    assert ends == [0, 0], "\n".join((folder / f"node{rank}.log").read_text()[-3000:] for rank in (0, 1))


def run_one(folder: Path, *arguments: str) -> None:
    """Run a command in one process to its end."""
    process = start(folder, ["-m", "strm_lightning", *arguments, "--trainer.devices=1"], "one")
    try:
        assert process.wait(LIMIT) == 0, (folder / "one.log").read_text()[-3000:]
    finally:
        kill(process)


def last_checkpoint(folder: Path, version: int = 0) -> Path:
    return folder / f"runs/version_{version}/checkpoints/last.ckpt"


def state(path: Path) -> Any:
    """Weights, optimiser and step of a checkpoint."""
    content = torch.load(path, weights_only=True)
    return {name: content[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")}


@pytest.fixture(scope="module")
def whole(actions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run of two nodes that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    run_nodes(folder, "fit", *FIT, f"--data.root={actions}")
    return last_checkpoint(folder)


def test_two_nodes_test_as_one_process(actions: Path, whole: Path, tmp_path: Path) -> None:
    options = [*TINY, f"--data.root={actions}", "--data.test_episodes=7", "--data.test_shots=[1,3]"]  # 7 is odd
    reports = []
    for name, run in (("one", run_one), ("two", run_nodes)):
        (tmp_path / name).mkdir()
        run(tmp_path / name, "test", *options, f"--ckpt_path={whole}")
        (path,) = (tmp_path / name).rglob("results.json")
        reports.append(json.loads(path.read_text()))
    one, two = reports
    assert (one.pop("timing")["processes"], two.pop("timing")["processes"]) == (1, 2)
    assert len(one["per_episode"]["seed"]) == 7
    assert one["per_episode"] == two["per_episode"]  # episodes, clips and predictions
    assert one == two


@pytest.mark.parametrize("killed", [0, 1])
def test_a_run_goes_on_after_a_node_was_killed(killed: int, actions: Path, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "pause.py").write_text(PAUSE)
    paused, options = tmp_path / "paused", [*FIT, f"--data.root={actions}"]
    callback = {"class_path": "pause.Pause", "init_args": {"node": killed, "batch": 6, "file": str(paused)}}
    with nodes(tmp_path, "fit", *options, f"--trainer.callbacks+={json.dumps(callback)}") as started:
        deadline = time.monotonic() + LIMIT
        while not (paused.exists() and paused.read_text()):
            assert time.monotonic() < deadline
            assert all(launcher.poll() is None for launcher in started), (tmp_path / "node0.log").read_text()[-3000:]
            time.sleep(0.2)
        other = started[1 - killed]
        workers = [worker for launcher in started for worker in children(launcher.pid)]
        assert len(workers) == 2
        assert int(paused.read_text()) in workers
        kill(started[killed])
        assert other.wait(END) != 0  # it does not wait for gradients that never come
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    content = state(last_checkpoint(tmp_path))
    assert (content["epoch"], content["global_step"]) == (1, 6)  # in the middle of the second epoch

    run_nodes(tmp_path, "fit", *options, f"--ckpt_path={last_checkpoint(tmp_path)}")
    resumed = state(last_checkpoint(tmp_path, 1))
    assert resumed["global_step"] == 12
    before = content["state_dict"]
    assert any(not torch.equal(before[name], tensor) for name, tensor in resumed["state_dict"].items())
    torch.testing.assert_close(resumed, state(whole), rtol=0, atol=0)
