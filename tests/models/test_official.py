"""Files of exactly the release's layout, built here, load; others get one clear line."""

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from strm_lightning.models import STRMHead
from strm_lightning.models.official import load_official, read_official

CHILDREN = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
BACKBONES = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}


def released_shapes(
    backbone: str, sizes: tuple[int, ...], d: int, frames: int, parallel: bool, trx: bool
) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the released code saves them; ``parallel`` is a run on several GPUs."""
    dim, module, shapes = BACKBONES[backbone], "module." if parallel else "", {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    with torch.device("meta"):
        resnet = timm.create_model(backbone, num_classes=0)
    for name, tensor in resnet.state_dict().items():
        child, _, rest = name.partition(".")
        shapes[f"resnet.{module}{CHILDREN[child]}.{rest}"] = tuple(tensor.shape)
    if not trx:
        ple, fle, half = f"attn_pat.{module}", f"fr_enrich.{module}", dim // 2
        shapes[f"{ple}gamma"], shapes[f"{ple}pe.pe"] = (1,), (1, 24, dim)
        for name in ("query_proj", "key_proj", "value_conv"):
            linear(ple + name, dim, dim)
        for name, inputs, outputs in (("inp_fc", dim, half), ("hid_fc", half, half), ("out_fc", half, dim)):
            linear(f"{ple}Bot_MLP.{name}", inputs, outputs)
        shapes[f"{fle}pe.pe"] = (1, int(frames * 1.5), dim)
        for mlp, width in (("Tok_MLP", frames), ("Bot_MLP", dim)):
            linear(f"{fle}{mlp}.inp_fc", width, width)
            linear(f"{fle}{mlp}.out_fc", width, width)
    for index, size in enumerate(sizes):
        branch = f"transformers.{index}"
        shapes[f"{branch}.pe.pe"] = (1, int(frames * 1.5), dim)
        linear(f"{branch}.k_linear", size * dim, d)
        linear(f"{branch}.v_linear", size * dim, d)
        shapes |= {f"{branch}.{norm}.{part}": (d,) for norm in ("norm_k", "norm_v") for part in ("weight", "bias")}
    return shapes


def released_state(
    backbone: str = "resnet18",
    sizes: tuple[int, ...] = (2,),
    d: int = 6,
    frames: int = 8,
    parallel: bool = False,
    trx: bool = False,
) -> dict[str, Tensor]:
    """Every tensor holds a number of its own, so that none can be taken for another."""
    shapes = released_shapes(backbone, sizes, d, frames, parallel, trx)
    return {name: torch.full(shape, 1e-3 * i) for i, (name, shape) in enumerate(shapes.items(), start=1)}


def save(path: Path, state: dict[str, Tensor]) -> Path:
    """The whole file: weights, SGD's state and a MultiStepLR, which holds a Counter."""
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=1e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[1000, 2000], gamma=0.1)
    torch.save(
        {
            "iteration": 10000,
            "model_state_dict": state,
            "optimizer_state_dict": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
        },
        path,
    )
    return path


@pytest.mark.parametrize("parallel", [False, True], ids=["one GPU", "several GPUs"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_tensor_arrives(tmp_path: Path, backbone: str, parallel: bool) -> None:
    saved = released_state(backbone, parallel=parallel)
    model = load_official(save(tmp_path / "released.pt", saved))
    module = "module." if parallel else ""
    assert model.backbone.name == f"{backbone}.tv_in1k"
    assert not model.training
    state = model.state_dict()
    for ours, theirs in {
        "backbone.net.bn1.bias": f"resnet.{module}1.bias",
        "backbone.net.layer4.1.conv2.weight": f"resnet.{module}7.1.conv2.weight",
        "head.ple.query.weight": f"attn_pat.{module}query_proj.weight",
        "head.ple.value.bias": f"attn_pat.{module}value_conv.bias",
        "head.ple.gate": f"attn_pat.{module}gamma",
        "head.ple.psi.2.weight": f"attn_pat.{module}Bot_MLP.hid_fc.weight",
        "head.fle.mix_frames.0.weight": f"fr_enrich.{module}Tok_MLP.inp_fc.weight",
        "head.fle.mix_channels.2.bias": f"fr_enrich.{module}Bot_MLP.out_fc.bias",
        "head.trm.0.key.weight": "transformers.0.k_linear.weight",
        "head.trm.0.norm_key.bias": "transformers.0.norm_k.bias",
    }.items():
        torch.testing.assert_close(state[ours], saved[theirs])
    unused = ("pe.pe", "norm_v.weight", "norm_v.bias", "num_batches_tracked")
    arrived = {t.flatten()[0].item() for name, t in state.items() if not name.endswith(unused)}
    assert arrived == {t.flatten()[0].item() for name, t in saved.items() if not name.endswith(unused)}


def test_pixels_stay_as_released(tmp_path: Path) -> None:
    shapes = {name: tensor.shape for name, tensor in released_state().items()}
    state = {n: torch.ones(s) if n.endswith("running_var") else torch.randn(s) * 0.03 for n, s in shapes.items()}
    model = load_official(save(tmp_path / "released.pt", state))
    levels = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(model.backbone.normalize(levels), levels / 255)
    clips = torch.rand(2, 8, 3, 64, 64)
    with torch.no_grad():
        assert model(clips.unsqueeze(1), clips).combined().isfinite().all()


@pytest.mark.parametrize(("sizes", "frames", "d"), [((2, 3), 8, 5), ((3,), 5, 4), ((2,), 16, 7)])
def test_sizes_are_inferred(tmp_path: Path, sizes: tuple[int, ...], frames: int, d: int) -> None:
    head = load_official(save(tmp_path / "released.pt", released_state(sizes=sizes, frames=frames, d=d))).head
    assert (head.tuple_sizes, head.num_frames, head.trm[0].key.out_features) == (sizes, frames, d)
    assert head.patch_grid == 4


def test_trx_loads_as_trx(tmp_path: Path) -> None:
    path = save(tmp_path / "trx.pt", released_state("resnet50", sizes=(2, 3), frames=8, trx=True, parallel=True))
    checkpoint = read_official(path, query_class="fresh")
    assert checkpoint.is_trx
    assert not checkpoint.absent
    head = load_official(path).head
    assert head.ple is None
    assert isinstance(head.fle, nn.Identity)
    assert head.qc is None
    assert (head.tuple_sizes, head.num_frames) == ((2, 3), 8)


def test_query_class_is_off_or_drawn_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "released.pt", released_state())
    with caplog.at_level(logging.INFO):
        assert load_official(path).head.qc is None
    assert "absent: QC's projection" in caplog.text
    assert "norm_v, which the official code does not use (2 tensors)" in caplog.text
    assert "position codes, which are computed (3 tensors)" in caplog.text
    assert "optimizer_state_dict; scheduler" in caplog.text

    first, again, other = (
        load_official(path, query_class="fresh", seed=seed).head.qc[0].linear.weight for seed in (0, 0, 1)
    )
    assert first.shape == (256, 1024)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_golden_vectors_from_a_file(tmp_path: Path) -> None:
    """The released modules' own weights and outputs, through a file of the whole layout."""
    golden = load_file(Path(__file__).parent / "golden_5w2s.safetensors")
    narrow = {name: tensor for name, tensor in released_state().items() if name.startswith("resnet.")}
    narrow |= {name: torch.ones(32) for name in narrow if name.startswith("resnet.7.0.bn")}
    weights = {name.removeprefix("w."): tensor for name, tensor in golden.items() if name.startswith("w.")}
    found = read_official(save(tmp_path / "golden.pt", narrow | weights))
    names = ("backbone", "normalize")
    head = STRMHead(32, **{k: v for k, v in found.options.items() if k not in names}).double().eval()
    head.load_state_dict({k.removeprefix("head."): v for k, v in found.state.items() if k.startswith("head.")})

    support, query = (head.enrich(golden[f"{role}_features"].unflatten(0, (-1, 8))) for role in ("support", "query"))
    order = torch.argsort(golden["support_labels"], stable=True).view(5, 2)
    logits = head.match(support[order], query)
    torch.testing.assert_close(logits.trm, golden["logits_tm"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.qc, golden["logits_qc"], rtol=1e-5, atol=1e-5)


def wrong(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_wrong_files_get_one_clear_line(tmp_path: Path) -> None:
    good = released_state()
    whole = save(tmp_path / "released.pt", good).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.pt").write_bytes(b"<html>404</html>")
    (tmp_path / "keras.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    lightning = {"state_dict": {"model.backbone.net.conv1.weight": torch.zeros(1)}}
    cases = {
        tmp_path / "absent.pt": "no such file",
        tmp_path / "cut.pt": "read safely",
        tmp_path / "page.pt": "read safely",
        tmp_path / "keras.h5": "read safely",
        wrong(tmp_path / "code.pt", {"model_state_dict": Path.cwd}): "read safely",
        wrong(tmp_path / "list.pt", [1, 2]): "neither an official STRM nor a TRX",
        wrong(tmp_path / "resnet.pt", timm.create_model("resnet18").state_dict()): "its tensors: conv1.weight, bn1",
        wrong(tmp_path / "ours.ckpt", lightning): "a checkpoint of this package already",
        save(tmp_path / "heads.pt", {k: v for k, v in good.items() if not k.startswith("resnet")}): "no ResNet-18, -34",
        save(tmp_path / "other.pt", good | {"classifier.weight": torch.zeros(1)}): "'classifier.weight' is not of",
        save(
            tmp_path / "less.pt", {k: v for k, v in good.items() if "norm_k" not in k}
        ): r"2 tensors .*norm_key.*absent",
        save(tmp_path / "shape.pt", good | {"attn_pat.gamma": torch.ones(2)}): r"ple\.gate': \[2\] in the file, \[1\]",
    }
    for path, message in cases.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            load_official(path)
        assert "\n" not in str(error.value)
