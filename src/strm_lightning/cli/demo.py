"""``strm demo``: the web page."""

import os
import signal

from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.cli.classify import classifier_without_examples
from strm_lightning.errors import InputError, MissingPackageError
from strm_lightning.web.uploads import Uploads, upload_folder


def demo(
    *,
    ckpt: str | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_mb: int = 100,
    max_total_mb: int = 1000,
    device: str | None = None,
) -> None:
    """Open a web page on this computer that recognises actions from a few clips of each.

    Args:
        ckpt: checkpoint of a trained model; without, a bare backbone compares patches frame by frame.
        backbone: timm model, where there is no ``ckpt``; null for EfficientNet-Lite0.
        weights: a file of its weights; null for the pretrained ones (of EfficientNet-Lite0 from the extra ``weights``).
        host: address to listen on; 0.0.0.0 lets other computers in, and whoever reaches it may use it.
        port: number of the port; null takes the first free one from 7860.
        max_mb: size in megabytes of the largest file that may be uploaded.
        max_total_mb: megabytes of all uploads together, with what is kept of them while their pages are open.
        device: such as ``cuda:0``; null for the GPU where there is one.
    """
    try:
        from strm_lightning.web import page as web
    except ModuleNotFoundError as error:
        raise MissingPackageError(f'the page needs {error.name}: in a checkout, run pip install ".[web]"') from error
    if max_mb < 1:
        raise InputError(f"--max_mb {max_mb}: give 1 megabyte or more")
    if max_total_mb < max_mb:
        raise InputError(f"--max_total_mb {max_total_mb}: give as much as --max_mb, {max_mb}, or more")
    web.check_address(host, port)
    plain = classifier_without_examples(ckpt, backbone, weights, device)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads go then too, as with Ctrl-C
    with upload_folder() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # where gradio stores uploads
        uploads = Uploads(max_total_mb * 10**6)
        page = web.build(lambda: FewShotClassifier(plain.model, plain.preprocessing), folder / "examples", uploads)
        web.serve(page, uploads, host=host, port=port, max_mb=max_mb)
