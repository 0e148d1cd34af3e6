"""``strm support``: list and change the examples in a file."""

from pathlib import Path

from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.storage import load, save_changed
from strm_lightning.classifier.videos import find_examples
from strm_lightning.errors import InputError
from strm_lightning.messages import count_of


def support(
    file: str,
    *,
    add: str | None = None,
    remove: str | None = None,
    rename: str | None = None,
    output: str | None = None,
    jobs: int = 1,
    device: str | None = None,
) -> str:
    """List the examples in a file that ``strm classify --save_support`` wrote, after changing them.

    Changes are made in the order remove, rename, add. Only ``add`` encodes videos and therefore loads the model.

    Args:
        file: the .safetensors file.
        add: folder, zip or .csv table of more examples, as for ``strm classify --support``; classes may be new.
        remove: a class, or a clip as ``CLASS/CLIP``, with the name of the clip as it is listed.
        rename: ``OLD=NEW``; if there is a class NEW, the two are merged.
        output: file to write; null for ``file`` itself.
        jobs: number of videos that are read at the same time.
        device: such as ``cuda:0``; null for the GPU if there is one.
    """
    path, target = Path(file), Path(output or file)
    if target.is_dir():
        raise InputError(f"--output {target}: is a folder; give a file, such as actions.safetensors")
    examples = None if add is None else find_examples(add)
    old, equals, new = (rename or "").partition("=")
    if rename is not None and not (old and equals and new):
        raise InputError(f"--rename {rename}: give OLD=NEW")
    stored = load(path)
    if remove is not None:
        stored = stored.without(remove)
    if rename is not None:
        stored = stored.renamed(old, new)
    if remove is not None or rename is not None or (output is not None and add is None):
        save_changed(stored, target)
    if examples is not None:
        changed = target if remove is not None or rename is not None else path
        classifier = FewShotClassifier.load(changed, device=device, jobs=jobs)
        for label, videos in examples.items():
            classifier.add(label, videos)
        classifier.save(target)
        stored = load(target)
    return listing(stored.clips_by_class)


def listing(clips: dict[str, list[str]]) -> str:
    """Describe the examples, one class with its clips after the other."""
    lines = [f"{count_of(clips, 'class')}, {sum(map(len, clips.values()))} clips"]
    for label, names in clips.items():
        lines += [f"{label}: {count_of(names, 'clip')}", *(f"  {name}" for name in names)]
    return "\n".join(lines)
