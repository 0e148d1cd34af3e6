"""Warn where pretrained weights have seen the classes of a test split."""

_SEEN = {"kinetics100": "Kinetics"}  # published split: data set whose classes it has


def seen_in_pretraining(split: object, pretrained_on: str) -> str | None:
    """Describe the overlap of a published split with the pretraining of a backbone, or return None.

    Args:
        split: the option ``split`` of the data module, or the name of the split.
        pretrained_on: data set of the pretraining, such as ``Kinetics-400``.
    """
    source = _SEEN.get(split) if isinstance(split, str) else None
    if source is None or source not in pretrained_on:
        return None
    return f"the weights have seen the test classes of {split} in pretraining: they are not new classes"
