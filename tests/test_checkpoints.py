"""Checkpoints: what is loaded is what was saved, and no file that is named can run code."""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from strm_lightning import FewShotClassifier, STRMModule
from strm_lightning.errors import InputError
from strm_lightning.models import STRMHead
from tests.test_cli import TINY, said
from tests.test_module import data, module, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:(?s).*(deprecated in v4|only one Jsonargparse)"),  # Lightning's calls
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*in the checkpoint.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty.*"),
]


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class HalfHead(STRMHead):
    """As its parent, but for what it predicts."""

    def match(self, support: Any, query: Any, shot_mask: Any = None) -> Any:
        raise NotImplementedError


def attack(path: Path, mark: Path) -> Path:
    """Two forms of a file: of torch, and a bare pickle; the name decides."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(Payload(mark)))
    else:
        torch.save({"state_dict": {}, "hyper_parameters": {"a": Payload(mark)}}, path)
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "served").mkdir()
    handler = partial(Quiet, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


def saved(model: STRMModule, root: Path, folder: Path) -> Path:
    """A checkpoint of one training step."""
    run = trainer(folder, max_epochs=1, limit_train_batches=1, limit_val_batches=0, enable_checkpointing=False)
    run.fit(model, datamodule=data(root))
    run.save_checkpoint(folder / "saved.ckpt")
    return folder / "saved.ckpt"


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt", "best", "last", "hpc", "registry.ckpt", "x.ckpt"])
@pytest.mark.parametrize("command", ["fit", "test"])
def test_no_name_runs_code_from_the_command_line(
    actions: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, name: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    attack(Path(name), tmp_path / "mark")
    _, error, status = said(monkeypatch, capsys, command, *TINY, f"--data.root={actions}", "--ckpt_path", name)
    assert (status, "Traceback" in error) == (2, False)
    assert f"--ckpt_path {name}: " in error
    assert not (tmp_path / "mark").exists()


def test_the_file_of_a_word_is_read_safely(actions: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Lightning resolves ``hpc`` to a file in the root folder."""
    monkeypatch.chdir(tmp_path)
    attack(tmp_path / "hpc_ckpt_1.ckpt", tmp_path / "mark")
    options = [*TINY, f"--data.root={actions}", f"--trainer.default_root_dir={tmp_path}"]
    _, error, status = said(monkeypatch, capsys, "fit", *options, "--ckpt_path=hpc")
    assert status == 2
    assert "hpc_ckpt_1.ckpt: cannot be read safely" in error.splitlines()[-1]
    assert not (tmp_path / "mark").exists()


def test_nothing_is_loaded_from_a_web_server(
    actions: Path, tmp_path: Path, server: str, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    attack(tmp_path / "served" / "best.ckpt", tmp_path / "mark")
    url = f"{server}/best.ckpt"
    _, error, status = said(monkeypatch, capsys, "test", *TINY, f"--data.root={actions}", "--ckpt_path", url)
    assert status == 2
    assert "not read from a web server; download the file" in error.splitlines()[-1]
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    with pytest.raises(InputError, match="web server"):
        run.fit(module(), datamodule=data(actions), ckpt_path=url)
    with pytest.raises(InputError, match="web server"):
        STRMModule.load_from_checkpoint(url)
    with pytest.raises(InputError, match="download the file first"):
        FewShotClassifier.from_checkpoint(url)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["x.ckpt", "x.pkl"])
def test_no_local_file_runs_code_from_python(actions: Path, tmp_path: Path, monkeypatch: Any, name: str) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # only what is asked for by name is safe then
    path = attack(tmp_path / name, tmp_path / "mark")
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    for load in (
        lambda: run.fit(module(), datamodule=data(actions), ckpt_path=path),
        lambda: run.test(module(), datamodule=data(actions), ckpt_path=path),
        lambda: STRMModule.load_from_checkpoint(path),
        lambda: FewShotClassifier.from_checkpoint(path),
    ):
        with pytest.raises(InputError, match=r"cannot be read safely"):
            load()
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError):
        STRMModule.load_from_checkpoint(file)
    with pytest.raises(InputError, match="weights_only=False"):
        STRMModule.load_from_checkpoint(path, weights_only=False)
    assert not (tmp_path / "mark").exists()


def test_a_head_of_ones_own_is_not_lost(actions: Path, tmp_path: Path) -> None:
    model = module()
    plain = saved(model, actions, tmp_path)
    assert "own_classes" not in torch.load(plain, weights_only=True)
    content = torch.load(plain, weights_only=True)

    own = module()
    own.model.head.__class__ = HalfHead
    own.on_save_checkpoint(content)
    path = tmp_path / "own.ckpt"
    torch.save(content, path)
    for load in (STRMModule.load_from_checkpoint, FewShotClassifier.from_checkpoint):
        with pytest.raises(
            InputError, match=r"model\.head is a tests\.test_checkpoints\.HalfHead, a class of your own"
        ):
            load(path)
    other = module()
    other.model.head.__class__ = HalfHead
    other.on_load_checkpoint(content)  # the same part is there: nothing is lost


def test_not_strict_leaves_out_names_that_differ(actions: Path, tmp_path: Path) -> None:
    path = saved(module(query_class=False), actions, tmp_path)
    with pytest.raises(InputError, match=r"another model: .*'model\.head\.qc.*absent"):
        STRMModule.load_from_checkpoint(path, query_class=True)
    loaded = STRMModule.load_from_checkpoint(path, query_class=True, strict=False)
    kept = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in kept.items())
    assert any("head.qc" in name for name in loaded.state_dict())
    with pytest.raises(InputError, match=r"another model: .*\[8"):
        STRMModule.load_from_checkpoint(path, match_dim=16, strict=False)


def compiled_round_trip(actions: Path, tmp_path: Path, whole: bool) -> None:
    """Train, save and load a compiled model."""

    def compiled() -> STRMModule:
        model = module()
        if whole:
            model.model = torch.compile(model.model, backend="eager")
        else:
            model.model.compile(backend="eager")
        return model

    path = saved(model := compiled(), actions, tmp_path)
    content = torch.load(path, weights_only=True)
    assert not any("_orig_mod" in name for name in content["state_dict"])
    assert "own_classes" not in content
    trained = dict(zip(content["state_dict"], model.state_dict().values(), strict=True))
    torch.testing.assert_close(STRMModule.load_from_checkpoint(path).state_dict(), trained)
    other = compiled()
    trainer(tmp_path, logger=False).validate(other, datamodule=data(actions), ckpt_path=path, verbose=False)
    torch.testing.assert_close(list(other.state_dict().values()), list(trained.values()))
    assert other.results is not None

    content["state_dict"] = {f"model._orig_mod.{name[6:]}": tensor for name, tensor in content["state_dict"].items()}
    torch.save(content, path)  # as version 0.1 wrote it
    torch.testing.assert_close(STRMModule.load_from_checkpoint(path).state_dict(), trained)
    FewShotClassifier.from_checkpoint(path)


@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_model_is_saved_and_loaded(actions: Path, tmp_path: Path, whole: bool) -> None:
    # In a process of its own: `torch.compile` cannot trace the checks of types and shapes that pytest switches on.
    code = (
        "from pathlib import Path; from tests.test_checkpoints import compiled_round_trip; "
        f"compiled_round_trip(Path({str(actions)!r}), Path({str(tmp_path)!r}), {whole})"
    )
    root = Path(__file__).parents[1]
    paths = os.pathsep.join([str(root / "src"), str(root)])
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, check=True)
