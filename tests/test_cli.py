"""The command line as people meet it: what it tells, and that it refuses in one line."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from strm_lightning.checkpoints import LastCheckpoint, WholeFiles
from strm_lightning.cli import COMMANDS, TRAINING, main
from strm_lightning.training import STRMCLI
from tests.test_module import data, module, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*")
TINY = (
    "--data.split={train: [left, right, up], val: [still, rise], test: [fall, sink]}",
    *["--data.way=2", "--data.shot=1", "--data.query_per_class=1", "--data.num_frames=4", "--data.image_size=32"],
    *["--data.num_workers=0", "--model.backbone=test_resnet", "--model.pretrained=false", "--model.match_dim=8"],
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
)


@pytest.fixture(autouse=True)
def _as_users_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's use of it


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str, int]:
    """Standard output, standard error and exit status of a command line."""
    monkeypatch.setattr("sys.argv", ["strm", *arguments])
    status = 0
    try:
        main()
    except SystemExit as end:
        status = int(end.code or 0)
    return *capsys.readouterr(), status


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_command(monkeypatch: Any, capsys: Any, arguments: tuple[str, ...]) -> None:
    out, _, status = said(monkeypatch, capsys, *arguments)
    assert status == 0
    for name in (*TRAINING, *COMMANDS):
        assert re.search(rf"^  {name} +\w", out, re.MULTILINE), name


def test_training_commands_are_lightnings() -> None:
    assert STRMCLI.subcommands().keys() == TRAINING.keys()


def test_every_option_of_ours_has_its_meaning(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out, _, status = said(monkeypatch, capsys, "fit", "--help")
    assert status == 0
    # Python 3.13 writes "--name, --name+ [ITEM,...]", earlier ones "--name [ITEM,...], --name+ [ITEM,...]".
    options = re.findall(
        r"^  (--(?:model|data|last_checkpoint)\.\w+)(?:[ ,][^\n]*)?\n?((?: {20,}.*\n)*)", out, re.MULTILINE
    )
    assert len(options) > 60
    for name, words in options:
        meaning = re.sub(r"\(type:.*", "", words, flags=re.DOTALL).strip()
        assert len(meaning) > 5 or re.search(rf"{re.escape(name)} .*  +\w+ .*\(type", out), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt"], "no command 'fitt'; did you mean fit"),
        (["fit", "--model.lrr=3"], "nrecognized arguments: --model.lrr=3; did you mean --model.lr[,?]"),
        (["fit", "--model.way=3"], "--model.way=3; did you mean --data.way?"),
        (["fit", "--model.lr=much"], "model.lr.*float.*much; all options: strm fit --help"),
        (["fit", "--config", "absent.yaml"], "absent.yaml"),
        (["doctor", "--splitt=x", "."], "splitt"),
        (["fit", "--ckpt_path", "absent.ckpt"], "--ckpt_path absent.ckpt: no such file"),
        (["test", "--ckpt_path", "."], "--ckpt_path .: is a folder"),
        (["test", "--ckpt_path", "cut.ckpt"], "--ckpt_path cut.ckpt: cannot be read safely"),
        (["test", "--ckpt_path", "code.ckpt"], "code.ckpt: cannot be read safely; it holds more than tensors"),
        (["test", "--ckpt_path", "other.ckpt"], "other.ckpt: not a checkpoint of `strm fit`.*strm convert"),
        (["fit", *TINY, "--trainer.accelerator=gpu"], "GPU|CUDA|gpu"),
        (["fit", *TINY, "--model.backbone=resnet5O"], "'resnet5O' is unknown.*resnet50"),
        (["fit", *TINY, "--model.tuple_sizes=[2,5]"], r"tuple_sizes \[2, 5\].*num_frames = 4"),
        (["fit", *TINY, "--data.root=absent"], "absent"),
        (["fit", *TINY, "--data.way=4"], "4-way.*the train split has 3"),
        (["fit", *TINY, "--data.shot=9"], "'left' has 6 clips.*9-shot.*needs 10"),
        (
            ["fit", *TINY, "--data.split={train: [left, up], val: [left, still]}"],
            "'left' .train and val. in two stages",
        ),
        (["fit", *TINY, "--model.backbone=gmlp_ti16_224"], "cannot take frames of 32 x 32 pixels"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    actions: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, arguments: list[str], message: str
) -> None:
    if arguments[0] == "fit" and torch.cuda.is_available() and "--trainer.accelerator=gpu" in arguments:
        pytest.skip("there is a GPU here")
    monkeypatch.chdir(tmp_path)
    torch.save({"run": Path.cwd}, "code.ckpt")
    torch.save({"a": torch.zeros(99)}, "other.ckpt")
    Path("cut.ckpt").write_bytes(Path("other.ckpt").read_bytes()[:400])
    root = [] if any("--data.root" in word for word in arguments) else ["--data.root", str(actions)]
    _, error, status = said(monkeypatch, capsys, *arguments, *(root if TINY[0] in arguments else []))
    assert status == 2
    last = error.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(message, last)
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.ckpt.part"))


def test_bugs_keep_their_trace(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("strm_lightning.cli._overview", lambda: {}["absent"])
    with pytest.raises(KeyError):
        said(monkeypatch, capsys, "--help")


def test_lightnings_tips_are_left_out(
    actions: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, caplog: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = ["--data.train_episodes=2", "--data.val_episodes=2", "--data.test_episodes=2"]
    more = [*steps, "--trainer.log_every_n_steps=1", "--trainer.enable_model_summary=false"]
    out, error, status = said(monkeypatch, capsys, "fit", *TINY, "--data.root", str(actions), *more)
    assert status == 0
    assert "accuracy" in out
    assert not re.search("Tip|litlogger|TPU", out + error + caplog.text)
    (checkpoints,) = tmp_path.glob("runs/*/checkpoints")
    assert {path.name for path in checkpoints.iterdir()} == {"best.ckpt", "last.ckpt"}


def test_last_checkpoint_is_written_within_an_epoch(actions: Path, tmp_path: Path) -> None:
    class Crash(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                raise InterruptedError

    last = LastCheckpoint(minutes=0.0)
    last.dirpath = str(tmp_path)
    run = trainer(tmp_path, callbacks=[last, Crash()], max_epochs=1)
    with pytest.raises(InterruptedError):
        run.fit(module(), datamodule=data(actions))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2  # of 4, before the crash


def test_a_checkpoint_that_is_cut_off_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, path = WholeFiles(), tmp_path / "last.ckpt"
    files.save_checkpoint({"step": 1}, path)

    def cut_off(checkpoint: Any, name: str) -> None:
        Path(name).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        files.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
