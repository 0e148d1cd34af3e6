"""Models are saved to and loaded from folders and a stubbed Hub, with a model card."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError

from strm_lightning import STRM
from strm_lightning.errors import InputError, MissingFileError
from strm_lightning.models.weights import hub
from tests.test_cli import said

CHECKPOINT = Path(__file__).parents[1] / "compat" / "v0_1" / "step4.ckpt"

OPTIONS: dict[str, Any] = {"pretrained": False, "num_frames": 4, "match_dim": 8, "tuple_sizes": (2, 3), "qc_dim": 5}
RESULTS = {
    "accuracy": 0.624, "ci95": 0.01, "way": 5, "shot": 1, "episodes": 2000, "sweep": [],
    "card": {
        "protocol": {"way": 5},
        "data": {"root": "/home/me/secret/kinetics", "split": "kinetics100", "classes": 24},
        "checkpoint": {"path": "/home/me/runs/best.ckpt", "training": {"root": "/home/me/secret/kinetics"}},
    },
}  # fmt: skip


@pytest.fixture
def model() -> STRM:
    torch.manual_seed(0)
    return STRM("test_resnet", **OPTIONS)


def same(a: STRM, b: STRM) -> bool:
    state, other = a.state_dict(), b.state_dict()
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def test_a_folder_gives_the_same_model(model: STRM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    loaded = STRM.from_pretrained(tmp_path / "mine")
    assert same(model, loaded)
    assert not loaded.training
    assert loaded.head.tuple_sizes == (2, 3)
    loaded.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "mine" / name).read_bytes()


def test_the_weights_of_the_backbone_are_not_read_again(tmp_path: Path) -> None:
    other = STRM("test_resnet", **OPTIONS)
    torch.save(other.backbone.net.state_dict(), tmp_path / "net.pth")
    model = STRM("test_resnet", **OPTIONS | {"pretrained": True, "weights": str(tmp_path / "net.pth")})
    model.save_pretrained(tmp_path / "mine")
    (tmp_path / "net.pth").unlink()
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert (config["pretrained"], config["weights"]) == (False, None)
    assert str(tmp_path) not in json.dumps(config)
    assert same(STRM.from_pretrained(str(tmp_path / "mine")), other) is False
    assert same(STRM.from_pretrained(str(tmp_path / "mine")), model)


def test_the_model_card_contains_the_test_but_no_paths(model: STRM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, model_card_kwargs={"results": RESULTS, "license": "apache-2.0"})
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "strm-lightning")
    assert "trm" in card.data.tags
    assert "| 5-way 1-shot | 62.4% | ± 1.0% |" in card.text
    assert '"root": "kinetics"' in card.text
    assert "/home/me" not in card.text
    assert RESULTS["card"]["data"]["root"] == "/home/me/secret/kinetics"  # type: ignore[index]  # not changed


class Hub:
    """A folder that behaves as the Hub does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token: str | None = None

    def __call__(self, token: str | None = None) -> "Hub":
        self.token = token
        return self

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        (self.folder / repo_id).mkdir(parents=True, exist_ok=True)
        return type("Repo", (), {"repo_id": repo_id})

    def upload_folder(self, repo_id: str, folder_path: Path, **_: Any) -> str:
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)
        return f"https://hub.example/{repo_id}"

    def download(self, repo_id: str, filename: str, **_: Any) -> str:
        if not (self.folder / repo_id / filename).is_file():
            raise LocalEntryNotFoundError("no connection\nsecond line")
        return str(self.folder / repo_id / filename)


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stub = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", stub)
    monkeypatch.setattr(hub, "hf_hub_download", stub.download)
    return stub


def test_the_hub_gives_the_same_model(model: STRM, stub: Hub) -> None:
    address = model.push_to_hub("me/model", token="t", model_card_kwargs={"results": RESULTS})
    assert address == "https://hub.example/me/model"
    assert stub.token == "t"
    assert same(STRM.from_pretrained("me/model"), model)
    assert "62.4%" in (stub.folder / "me/model/README.md").read_text()


def test_absent_and_wrong_models_are_one_line(model: STRM, stub: Hub, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"^model me/other: no such folder, and .* \(no connection\)$"):
        STRM.from_pretrained("me/other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"contains no config\.json"):
        STRM.from_pretrained(tmp_path / "empty")
    model.save_pretrained(tmp_path / "mine")
    with pytest.raises(InputError, match="does not have the tensors"):
        STRM.from_pretrained(tmp_path / "mine", match_dim=9)
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config | {"newer": 1}))
    with pytest.raises(InputError, match=r"does not fit this version.*newer"):
        STRM.from_pretrained(tmp_path / "mine")
    (tmp_path / "mine" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json is damaged"):
        STRM.from_pretrained(tmp_path / "mine")


def test_a_checkpoint_becomes_a_folder(
    stub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["publish", str(CHECKPOINT), str(tmp_path / "mine"), "--license=mit", "--push=me/mine"]
    out, err, status = said(monkeypatch, capsys, *words)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "https://hub.example/me/mine"
    state = torch.load(CHECKPOINT, weights_only=True)["state_dict"]
    for source in (tmp_path / "mine", "me/mine"):
        loaded = STRM.from_pretrained(source).state_dict()
        for name in ("backbone.net.conv1.0.weight", "head.qc.0.linear.bias"):
            key = name.replace("head.qc.0", "head.qc.branches.0") if name not in loaded else name
            assert torch.equal(loaded[key], state[f"model.{name}"])
    assert ModelCard.load(tmp_path / "mine" / "README.md").data.license == "mit"
    _, err, status = said(monkeypatch, capsys, *words)
    assert status == 2
    assert "exists already" in err
