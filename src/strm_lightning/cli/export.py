"""``strm export``: export a classifier to ONNX, with a program that runs it without torch."""

from pathlib import Path
from typing import Literal

from strm_lightning.classifier.export import export_classifier
from strm_lightning.classifier.export.bundle import check_folder
from strm_lightning.classifier.export.graphs import check_packages
from strm_lightning.classifier.videos import find_videos
from strm_lightning.cli.classify import Model, examples_in, one_line_warnings, open_classifier
from strm_lightning.errors import InputError


def export(
    out: str,
    *,
    support: str | None = None,
    ckpt: str | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    matching: str | None = None,
    mirror: bool = False,
    threshold: float | Literal["fit"] | None = None,
    temperature: float | Literal["fit"] | None = None,
    check: str | None = None,
    int8: bool = False,
) -> str:
    """Export a classifier to a folder with ONNX files and a program, ``predict.py``, that needs no torch.

    The folder is written only if its predictions are those of PyTorch.

    Args:
        out: folder to write: absent or empty.
        support: examples, as for ``strm classify``: a folder with a subfolder for each class, or a file that
            ``--save_support`` wrote; null exports the model without examples.
        ckpt: checkpoint of a trained model; null for the model of the support file, or for a pretrained backbone.
        backbone: timm model to use without ``ckpt``; null for EfficientNet-Lite0.
        weights: file of the backbone's weights; null for pretrained weights.
        matching: matching method to use without ``ckpt``; null for ``auto``.
        mirror: an action and its mirror image are the same action; only without ``ckpt``.
        threshold: probability below which a video is ``unknown``; ``fit`` fits a threshold on the logit to the
            examples; null for no threshold, or for the support file's.
        temperature: divides the logits; ``fit`` fits it to the examples; null for ``fit``, or for the support file's.
        check: folder of videos that are not among the examples, to compare predictions on; null leaves out the
            examples one by one.
        int8: convert the convolutions of the encoding to int8, which makes the file smaller and faster. The ranges of
            values are measured on examples, or on half of ``check`` if the examples are a file; labels are compared on
            other clips, and at most 5 % of them may differ.
    """
    check_packages()
    check_folder(Path(out))
    videos = find_videos([check]) if check is not None else []
    given = {"threshold": threshold, "temperature": temperature}
    options = {name: value for name, value in given.items() if value is not None}
    model = Model(ckpt, backbone, weights, matching, mirror, device="cpu")
    if support is not None:
        classifier = open_classifier(examples_in(support), model, **options)
    elif ckpt is not None or matching is not None or backbone is not None:
        classifier = model.build(**options)
    else:
        raise InputError("nothing to export: give --support, examples of each class, or --ckpt, a trained model")
    with one_line_warnings():
        return f"{out}: {export_classifier(classifier, out, check=videos, int8=int8, progress=True)}"
