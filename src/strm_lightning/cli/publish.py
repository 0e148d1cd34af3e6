"""``strm publish``: write a model folder with a model card from a checkpoint."""

from pathlib import Path

from strm_lightning.classifier.load_model import read_checkpoint
from strm_lightning.errors import InputError
from strm_lightning.evaluation.results_file import load_results


def publish(
    checkpoint: Path,
    out: Path,
    *,
    results: str | None = None,
    license: str | None = None,  # noqa: A002 - the Hub's word
    push: str | None = None,
) -> None:
    """Write a folder for ``STRM.from_pretrained`` from a checkpoint: options, weights (safetensors) and a model card.

    Args:
        checkpoint: checkpoint of ``strm fit``.
        out: new folder to write.
        results: ``results.json`` of a test of this checkpoint, or the folder of its run, for the model card.
        license: identifier of the licence, such as ``apache-2.0``, for the model card.
        push: repository on the Hugging Face Hub, ``user/name``, to upload the folder to; null uploads nothing.
    """
    if out.exists():
        raise InputError(f"{out}: exists already; give a new folder")
    card = {"results": None if results is None else load_results(results), "license": license}
    model, _, _ = read_checkpoint(checkpoint)
    model.save_pretrained(out, model_card_kwargs=card)
    print(f"{out}: config.json, model.safetensors, README.md")
    if push is not None:
        print(model.push_to_hub(push, model_card_kwargs=card))
