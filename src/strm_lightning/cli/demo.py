"""``strm demo``: a local web page for the classifier."""

import signal

from strm_lightning.cli.classify import Model, examples_in, open_classifier
from strm_lightning.errors import InputError, MissingPackageError


def demo(
    *,
    support: str | None = None,
    ckpt: str | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    matching: str | None = None,
    mirror: bool = False,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_mb: int = 100,
    max_total_mb: int = 1000,
    device: str | None = None,
) -> None:
    """Start a local web page that recognises actions from a few example clips of each class.

    Args:
        support: folder with a subfolder of example clips for each class, or a file of examples, that the page opens
            with; null for built-in examples.
        ckpt: checkpoint of a trained model; null for the model of the support file, or for a pretrained backbone.
        backbone: timm model to use without ``ckpt``; null for EfficientNet-Lite0.
        weights: file of the backbone's weights; null for pretrained weights (EfficientNet-Lite0: the extra
            ``weights``).
        matching: matching method to use without ``ckpt``; null for ``auto``, see ``strm classify``.
        mirror: an action and its mirror image are the same action; only without ``ckpt``.
        host: address to listen on; 0.0.0.0 allows other computers to connect, without a password.
        port: port number; null for the first free one from 7860.
        max_mb: largest size of an uploaded file, in megabytes.
        max_total_mb: largest size of all uploads and examples of open pages, in megabytes.
        device: such as ``cuda:0``; null for the GPU if there is one.
    """
    try:
        from strm_lightning.web import page, serve
    except ModuleNotFoundError as error:
        raise MissingPackageError(f'strm demo needs {error.name}: in a checkout, run pip install ".[web]"') from error
    from strm_lightning.web.greeting import built_in_examples
    from strm_lightning.web.session_store import SessionStore
    from strm_lightning.web.upload_folder import upload_folder

    if max_mb < 1:
        raise InputError(f"--max_mb {max_mb}: give at least 1")
    if max_total_mb < max_mb:
        raise InputError(f"--max_total_mb {max_total_mb}: give at least --max_mb, {max_mb}")
    serve.check_address(host, port)
    model = Model(ckpt, backbone, weights, matching, mirror, device)
    plain = model.build() if support is None else open_classifier(examples_in(support), model)
    built_in = support is None
    examples = built_in_examples(plain) if built_in else {name: plain.support.clips[name] for name in plain.classes_}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # delete the uploads, as after Ctrl-C
    with upload_folder() as folder:
        store = SessionStore(plain, examples, built_in=built_in, max_bytes=max_total_mb * 10**6)
        try:
            serve.serve(page.build_page(store, folder, max_mb), store, host=host, port=port, max_mb=max_mb)
        finally:  # an export must not write to the folder while it is deleted
            store.close()
