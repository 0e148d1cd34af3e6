"""``strm convert``: what it writes is tested by ``strm test`` and loaded by STRMModule."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from strm_lightning import STRMModule
from strm_lightning.cli.main import main
from strm_lightning.models.official import load_official
from tests.models.test_official import released_state, save

SPLIT = {"train": ["left", "right"], "test": ["fall", "sink", "leap"]}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


def released_file(path: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in released_state(**options).items()}
    state = {n: torch.ones(s) if n.endswith("running_var") else torch.randn(s) * 0.03 for n, s in shapes.items()}
    return save(path, state)


def test_a_converted_checkpoint_is_tested(
    actions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    released, ours = released_file(tmp_path / "released.pt"), tmp_path / "ours.ckpt"
    main(["convert", str(released), str(ours)])
    said = capsys.readouterr().out
    for words in ("resnet18.tv_in1k", "Omega {2}, d = 6, L = 8, 4 x 4 patches", "QC is off", "norm_v", "scheduler"):
        assert words in said

    loaded = STRMModule.load_from_checkpoint(ours, weights_only=True)
    expected = load_official(released).state_dict()
    torch.testing.assert_close(loaded.model.state_dict(), expected)
    assert torch.load(ours, weights_only=True)["datamodule_hyper_parameters"]["frame_policy"] == "release"

    recipe = ["experiments/kinetics.yaml", "experiments/official/release.yaml"]
    configs = [word for path in recipe for word in ("--config", path)]
    tiny = f"""--data.way=2 --data.shot=1 --data.image_size=64 --data.short_side=72 --data.test_episodes=5
        --data.num_workers=0 --trainer.accelerator=cpu --trainer.logger.init_args.save_dir={tmp_path}"""
    where = ["--ckpt_path", str(ours), "--data.root", str(actions), "--data.split", json.dumps(SPLIT)]
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning reads hyper-parameters in an old way
    monkeypatch.setattr("sys.argv", ["strm", "test", *configs, *where, *tiny.split()])
    main()
    said = capsys.readouterr().out
    assert "5, 2-way 1-shot, 3 actions" in said


def test_query_class_by_option_and_trx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = tmp_path / "ours.ckpt"
    main(["convert", str(released_file(tmp_path / "a.pt")), str(ours), "--query_class=fresh", "--seed=3"])
    assert "initialised at random" in capsys.readouterr().out
    assert STRMModule.load_from_checkpoint(ours, weights_only=True).model.head.qc is not None
    ours = tmp_path / "a new folder" / "ours.ckpt"
    main(["convert", str(released_file(tmp_path / "b.pt", trx=True)), str(ours)])
    said = capsys.readouterr().out
    assert "TRX" in said
    assert "Omega {2}, d = 6, L = 8\n" in said
    assert [path.name for path in ours.parent.iterdir()] == ["ours.ckpt"]  # nothing half written beside it


def test_what_to_do_next_fits_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for frames, option in ((8, "ours.ckpt --data.root"), (5, "ours.ckpt --data.num_frames=5 --data.root")):
        main(["convert", str(released_file(tmp_path / "a.pt", frames=frames)), str(tmp_path / "ours.ckpt")])
        assert option in capsys.readouterr().out


def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["convert", str(tmp_path / "absent.pt"), str(tmp_path / "out.ckpt")])
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip().endswith("absent.pt: no such file")
    assert not (tmp_path / "out.ckpt").exists()
    with pytest.raises(SystemExit):
        main(["convert", str(released_file(tmp_path / "a.pt")), str(tmp_path)])
    assert "is a folder: give the file to write" in capsys.readouterr().err
