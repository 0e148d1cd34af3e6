"""The command line: help texts, and input errors in one line."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch._utils import ExceptionWrapper

from strm_lightning import errors
from strm_lightning.cli.fit import STRMCLI
from strm_lightning.cli.main import COMMANDS, TRAINING, main
from strm_lightning.data.decode.video import VideoError
from strm_lightning.training.checkpoints import AtomicCheckpointIO, LastCheckpoint
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
    out, _, status = said(monkeypatch, capsys, "fit", "--help-all")
    assert status == 0
    # Python 3.13 writes "--name, --name+ [ITEM,...]", earlier ones "--name [ITEM,...], --name+ [ITEM,...]".
    options = re.findall(
        r"^  (--(?:model|data|last_checkpoint)\.\w+)(?:[ ,][^\n]*)?\n?((?: {20,}.*\n)*)", out, re.MULTILINE
    )
    assert len(options) > 60
    for name, words in options:
        meaning = re.sub(r"\(type:.*", "", words, flags=re.DOTALL).strip()
        assert len(meaning) > 5 or re.search(rf"{re.escape(name)} .*  +\w+ .*\(type", out), name


@pytest.mark.parametrize("name", TRAINING)
def test_help_is_short_and_ours_comes_first(monkeypatch: Any, capsys: Any, name: str) -> None:
    short, _, status = said(monkeypatch, capsys, name, "--help")
    everything, _, status_of_all = said(monkeypatch, capsys, name, "--help-all")
    assert status == status_of_all == 0
    options, all_options = (
        set(re.findall(r"^  (?:-c CONFIG, )?(--[\w.-]+)", text, re.MULTILINE)) for text in (short, everything)
    )
    assert {"--config", "--ckpt_path", "--data.root", "--data.split", "--model.backbone", "--help-all"} <= options
    assert options < all_options
    assert 15 <= len(options) <= 27
    assert len(all_options) > 100
    for text in (short, everything):
        assert text.index("--data.root ") < text.index("--model.backbone ") < text.index("--trainer.devices ")


BAD_FILES = {
    "cut.yaml": b"data: {way: [\n",
    "list.yaml": b"- 1\n- 2\n",
    "words.yaml": b"way is five\n",
    "empty.yaml": b"",
    "tab.yaml": b"data:\n\tway: 3\n",
    "picture.yaml": b"\x89PNG\x00\xff\xfe",
    "code.yaml": b"data: !!python/object/apply:os.system [ls]\n",
    "option.yaml": b"data: {wayy: 3}\n",
    "group.yaml": b"trainr: {max_epochs: 3}\n",
    "type.yaml": b"data: {way: many}\n",
    "class.yaml": b"trainer: {logger: {class_path: nope.Nope}}\n",
    "argument.yaml": b"trainer: {callbacks: [{class_path: EarlyStopping, init_args: {nope: 1}}]}\n",
}
SAID = {"option.yaml": "--data.way", "group.yaml": "--trainer.max_epochs", "class.yaml": "nope.Nope"}
SAID |= {"picture.yaml": "picture.yaml is not a YAML file", "type.yaml": "way.*many", "argument.yaml": "'nope'"}


@pytest.mark.parametrize("name", [*BAD_FILES, "folder"])
def test_bad_configuration_files_are_one_line(tmp_path: Path, monkeypatch: Any, capsys: Any, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for file, content in BAD_FILES.items():
        Path(file).write_bytes(content)
    _, error, status = said(monkeypatch, capsys, "fit", "--config", name)
    assert status == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(SAID.get(name, ""), error)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("trainer.accelerator=abacus", "trainer: .*accelerator='abacus'"),
        ("trainer.devices=-3", "trainer: .*devices"),
        ("trainer.strategy=nope", "trainer: .*strategy='nope'"),
        ("trainer.num_nodes=0", "trainer: `num_nodes`"),
        ("trainer.barebones=true", "trainer: .*barebones"),
        ("trainer.profiler=nope", "profiler"),
        ("trainer.max_epochs=-2", "max_epochs"),
        (
            "trainer.max_epochs=x",
            r"trainer.max_epochs\W+Expected a <class '(int|NoneType)'>.*x; all options: strm fit --help-all",
        ),
        ("trainer.precision=8", "trainer.precision"),
        ("trainer.accumulate_grad_batches=0", "--trainer.accumulate_grad_batches is 0: the lowest value is 1"),
        ("trainer.check_val_every_n_epoch=0", "--trainer.check_val_every_n_epoch is 0: the lowest value is 1"),
        ("trainer.val_check_interval=99", "val_check_interval"),
        ("trainer.logger=CometLogger", "given class_path 'lightning.pytorch.loggers.CometLogger'.*comet"),
        ("trainer.logger.init_args.save_dir=file/runs", "--trainer.logger: the folder file/runs cannot be written to"),
        ("checkpoint.dirpath=file/runs", "--checkpoint.dirpath: the folder .*file/runs cannot be written to"),
        ("checkpoint.monitor=nope", "monitor='nope'"),
        ("trainer.callbacks={class_path: EarlyStopping, init_args: {monitor: nope}}", "`nope` which is not available"),
        ("seed_everything=-1", "--seed_everything is -1: the lowest value is 0"),
        ("model.lr=-1", "--model.lr is -1.0: the lowest value is 0"),
        ("data.num_workers=-1", "--data.num_workers is -1: the lowest value is 0"),
    ],
)
def test_wrong_options_of_lightning_are_one_line(
    actions: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, option: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    steps = ["--data.train_episodes=2", "--data.val_episodes=2", "--data.test_episodes=2"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    quiet.append("--trainer.log_every_n_steps=1")
    line = ["fit", *TINY, *steps, *quiet, "--data.root", str(actions), f"--{option}"]
    _, error, status = said(monkeypatch, capsys, *line)
    assert status == 2
    last = error.splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(message, last)


@pytest.mark.parametrize("name", TRAINING)
def test_the_data_come_before_the_model(tmp_path: Path, monkeypatch: Any, capsys: Any, name: str) -> None:
    """A wrong folder is reported at once, not after the weights have been asked for."""
    built: list[str] = []
    monkeypatch.setattr("timm.create_model", lambda *_, **__: built.append("model"))
    monkeypatch.chdir(tmp_path)
    _, error, status = said(monkeypatch, capsys, name, "--data.root", "nofolder")
    assert (status, built) == (2, [])
    assert error.splitlines()[-1].startswith("error: ")
    assert "nofolder" in error


def test_a_test_that_cannot_run_is_reported_before_training(
    actions: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["fit", *TINY, "--data.root", str(actions), "--data.test_shots=[1,9]"]
    _, error, status = said(monkeypatch, capsys, *line)
    assert status == 2
    assert re.search("9-shot .*needs 10 .test split", error.splitlines()[-1])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt"], "no command 'fitt'; did you mean 'fit'"),
        (["fit", "--model.lrr=3"], "nrecognized arguments: --model.lrr=3; did you mean --model.lr[,?]"),
        (["fit", "--model.way=3"], "--model.way=3; did you mean --data.way?"),
        (["fit", "--model.lr=much"], "model.lr.*float.*much; all options: strm fit --help-all"),
        (["fit", "--config", "absent.yaml"], "absent.yaml"),
        (["doctor", "--splitt=x", "."], "splitt"),
        (["fit", "--ckpt_path", "absent.ckpt"], "--ckpt_path absent.ckpt: no such file"),
        (["test", "--ckpt_path", "."], "--ckpt_path .: is a folder"),
        (["test", "--ckpt_path", "best"], "--ckpt_path best: name the file"),
        (["test", "--ckpt_path", "cut.ckpt"], "--ckpt_path cut.ckpt: cannot be read safely"),
        (["test", "--ckpt_path", "code.ckpt"], "code.ckpt: cannot be read safely; it holds more than tensors"),
        (["test", "--ckpt_path", "other.ckpt"], "other.ckpt: not a checkpoint of `strm fit`.*strm convert"),
        (["fit", *TINY, "--trainer.accelerator=gpu"], "GPU|CUDA|gpu"),
        (["fit", *TINY, "--model.backbone=resnet5O"], "'resnet5O' is unknown.*resnet50"),
        (["fit", *TINY, "--model.tuple_sizes=[2,5]"], r"tuple_sizes \[2, 5\].*from 1 to 4 \(time steps\)"),
        (["fit", *TINY, "--data.root=absent"], "absent"),
        (["fit", *TINY, "--data.way=4"], "4-way.*the train split has 3"),
        (["fit", *TINY, "--data.shot=9"], "'left' has 6 clips.*9-shot.*needs 10"),
        (
            ["fit", *TINY, "--data.split={train: [left, up], val: [left, still]}"],
            "in two stages: 'left' .train and val.",
        ),
        (["fit", *TINY, "--model.backbone=gmlp_ti16_224"], "does not accept frames of 32 x 32 pixels"),
    ],
)
def test_input_errors_are_one_line(
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


ERRORS = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.InputError)]


def test_an_error_of_a_worker_process_is_one_line(monkeypatch: Any, capsys: Any) -> None:
    """torch raises an error of a data loader's worker again, with the worker's traceback in its message."""

    def fail(*_: Any) -> None:
        try:
            raise VideoError("a.mp4: truncated, 9 bytes are missing at its end")
        except VideoError:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()

    monkeypatch.setattr("strm_lightning.cli.main._run", fail)
    _, error, status = said(monkeypatch, capsys, "fit")
    assert (error, status) == ("error: a.mp4: truncated, 9 bytes are missing at its end\n", 2)


@pytest.mark.parametrize("error", ERRORS)
def test_every_class_of_input_errors_is_one_line(monkeypatch: Any, capsys: Any, error: type[Exception]) -> None:
    def doctor(root: str) -> None:
        raise error(f"{root}: it's wrong")

    monkeypatch.setattr("strm_lightning.cli.main.command", lambda _: doctor)
    assert said(monkeypatch, capsys, "doctor", "here") == ("", "error: here: it's wrong\n", 2)
    monkeypatch.setenv("STRM_TRACEBACK", "1")
    with pytest.raises(error):
        said(monkeypatch, capsys, "doctor", "here")


@pytest.mark.parametrize("error", [TypeError, ValueError, KeyError, RuntimeError, OSError, AttributeError, ImportError])
def test_a_bug_in_a_command_keeps_its_traceback(monkeypatch: Any, capsys: Any, error: type[Exception]) -> None:
    def doctor(root: str) -> None:
        raise error("'NoneType' object is not iterable")

    monkeypatch.setattr("strm_lightning.cli.main.command", lambda _: doctor)
    with pytest.raises(error, match="not iterable"):
        said(monkeypatch, capsys, "doctor", "here")
    assert "error:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("data.datamodule.load_video_sets", TypeError),
        ("training.module.STRMModule.configure_optimizers", ValueError),
        ("training.module.STRMModule.training_step", RuntimeError),
        ("cli.fit.SaveConfig.setup", TypeError),
    ],
)
def test_a_bug_in_training_keeps_its_traceback(
    actions: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, place: str, error: type[Exception]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error("'NoneType' object is not iterable")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"strm_lightning.{place}", broken)
    with pytest.raises(error, match="not iterable"):
        said(monkeypatch, capsys, "fit", *TINY, "--data.root", str(actions))
    assert "error:" not in capsys.readouterr().err


def test_the_shell_shows_the_traceback_of_a_bug_and_its_status(tmp_path: Path) -> None:
    code = (
        "import strm_lightning.cli.main as cli\n"
        "def doctor(root: str):\n    return list(None)\n"
        "cli.command = lambda name: doctor\n"
        "cli.main(['doctor', '.'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "TypeError: 'NoneType' object is not iterable" in done.stderr


def test_lightnings_tips_are_left_out(
    actions: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, caplog: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = ["--data.train_episodes=2", "--data.val_episodes=2", "--data.test_episodes=2"]
    more = [*steps, "--trainer.log_every_n_steps=1", "--trainer.enable_model_summary=false"]
    out, error, status = said(monkeypatch, capsys, "fit", *TINY, "--data.root", str(actions), *more)
    assert status == 0
    assert "accuracy" in out
    assert not re.search("Tip|litlogger|TPU|Seed set", out + error + caplog.text)
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
    files, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    files.save_checkpoint({"step": 1}, path)

    def cut_off(checkpoint: Any, name: str) -> None:
        Path(name).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        files.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
