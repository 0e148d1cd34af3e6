"""Built-in examples, which a page opens with."""

from collections.abc import Sequence

import numpy as np

from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.support import EncodedClip
from strm_lightning.moving_shapes.scene import render_clip

_ACTIONS = {"move left": "slide_left", "move right": "slide_right", "circle": "circle_clockwise"}
_CLIPS = 3
_SECONDS = 3.0  # of a clip, as of a recording


def built_in_examples(classifier: FewShotClassifier) -> dict[str, Sequence[EncodedClip]]:
    """Draw and encode clips of moving shapes for three classes."""
    found: dict[str, Sequence[EncodedClip]] = {}
    for label, action in _ACTIONS.items():
        clips = []
        for number in range(_CLIPS):
            frames = render_clip(action, np.random.default_rng([7, number]), size=256, clutter=0.0)
            clip, _ = classifier.encode_one(frames)
            clip.name, clip.duration = f"{action} {number + 1}", _SECONDS
            clips.append(clip)
        found[label] = clips
    return found
