"""``strm demo`` on the command line."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch

from strm_lightning.models import Backbone
from tests.classifier.conftest import moving, save_weights, write_video

pytest.importorskip("gradio", reason="the page needs the extra `web`")
pytestmark = pytest.mark.filterwarnings("ignore")  # gradio's and its server's own


def test_wrong_options_are_refused_before_a_model_is_loaded(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    from strm_lightning.cli.main import main

    port = address.rstrip("/").rpartition(":")[2]
    for words, message in (
        ([f"--port={port}"], f"cannot listen on 127.0.0.1, port {port}: Address already in use"),
        (["--port=99999"], "cannot listen on port 99999: give a number from 0 to 65535"),
        (["--host=203.0.113.1"], "cannot listen on 203.0.113.1"),
        (["--max_mb=0"], "--max_mb 0: give at least 1"),
        (["--max_total_mb=50"], "--max_total_mb 50: give at least --max_mb, 100"),
    ):
        with pytest.raises(SystemExit):
            main(["demo", "--ckpt=none.ckpt", *words])
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_it_opens_with_a_folder_of_examples_and_deletes_its_files_when_ended(tmp_path: Path) -> None:
    """Ended as a service manager does it; a process of its own, since it is ended by a signal."""
    torch.manual_seed(0)
    save_weights(Backbone("test_resnet", pretrained=False).net, tmp_path / "weights.safetensors")
    for motion in ("left", "up"):
        write_video(tmp_path / "actions" / motion / "a.mp4", moving(motion))
    words = [f"--support={tmp_path / 'actions'}", "--backbone=test_resnet"]
    words = ["demo", *words, f"--weights={tmp_path / 'weights.safetensors'}"]
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "strm_lightning", *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert "The page is at http://127.0.0.1:" in line
        assert urlopen(line.split()[4] + "config").status == 200
        assert list((tmp_path / "tmp").glob("strm-demo-*"))
        server.terminate()
        server.wait(30)
    assert not list((tmp_path / "tmp").glob("strm-demo-*"))
