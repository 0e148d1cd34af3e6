"""Convert the convolutions of an exported encoding to int8, with ranges that are measured on real clips."""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import nn

from strm_lightning.classifier.export.graphs import LARGEST_FILE
from strm_lightning.errors import InputError
from strm_lightning.models.strm import STRM

CALIBRATION_CLIPS = 16  # at most; with 5 or 32, the tensors of EgoGestAR were as near to the float ones
_LEAST_SHARE = 0.5  # of the backbone's weights that are in convolutions
_OPERATIONS = ["Conv", "Clip", "Relu"]  # a convolution and the activation that is computed with it


def check_backbone(model: STRM) -> None:
    """Check that most weights of the backbone are in convolutions, and that the encoding is one file.

    Raises:
        InputError: they are not, so int8 would save little; or the weights need a second file.
    """
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    inside = sum(part.weight.numel() for part in model.backbone.modules() if isinstance(part, kinds))
    share = inside / sum(weight.numel() for weight in model.backbone.parameters())
    if share < _LEAST_SHARE:
        raise InputError(
            f"int8: only convolutions are converted, and {share:.0%} of the weights of {model.backbone.name!r} are in "
            f"convolutions: export without int8"
        )
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > LARGEST_FILE:
        raise InputError(f"int8: the model has {size / 1e9:.1f} GB, and {LARGEST_FILE / 1e9:.1f} GB are the most")


def quantize_encoding(path: Path, clips: Iterable[np.ndarray]) -> None:
    """Convert the convolutions of a file that `graphs.export_encoding` wrote to int8, in place.

    Static quantization of onnxruntime: the weights of each output channel and each activation have a scale of their
    own. Weights have 7 bits, because sums of 8-bit products saturate on processors without int8 instructions (VNNI),
    and the export runs on other machines than the one that compares it with PyTorch. The range of an activation is that
    of its values for ``clips``.

    Args:
        path: the file.
        clips: pixels ``[L, 3, S, S]`` of uint8, read one after the other.

    Raises:
        InputError: onnxruntime cannot convert the file.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.clips = iter(clips)

        def get_next(self) -> dict[str, Any] | None:
            clip = next(self.clips, None)
            return None if clip is None else {"frames": clip[None]}

    with TemporaryDirectory(dir=path.parent) as folder, _quiet():
        prepared, result = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        try:
            # Symbolic shapes need sympy, and change nothing for convolutions.
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(result),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=_OPERATIONS,
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
        except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"int8: onnxruntime cannot convert the encoding: {reason}") from error
        result.replace(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the messages of onnxruntime's tools, which are about its own functions."""
    import onnxruntime

    handler, before = logging.NullHandler(), logging.root.manager.disable
    logging.root.addHandler(handler)  # `logging.warning` adds one that prints if there is none
    logging.disable(logging.ERROR)
    onnxruntime.set_default_logger_severity(3)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # onnxruntime's default
        logging.disable(before)
        logging.root.removeHandler(handler)
