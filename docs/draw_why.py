"""Draw docs/images/why.png: the explanation of a video by the default classifier, for README and docs.

The videos are moving shapes, so that the picture may be published. Run it from the root of a checkout; it needs the
extras ``weights`` and ``plots``: python docs/draw_why.py
"""

from pathlib import Path

import numpy as np

from strm_lightning import FewShotClassifier
from strm_lightning.classifier.explain.picture import draw
from strm_lightning.moving_shapes.scene import render_clip

ACTIONS = ("vee", "loop_right", "slide_up", "corner_down_left", "zigzag_left")
SHOTS, QUERY = 3, 9  # examples of each action; seed of the video


def clip(action: str, seed: int) -> np.ndarray:
    """Render one clip, ``[24, 224, 224, 3]``."""
    return render_clip(action, np.random.default_rng([seed, ACTIONS.index(action)]), size=224, clutter=0.3)


def main() -> None:
    """Fit the classifier, explain one video and draw the picture."""
    classifier = FewShotClassifier.from_backbone()
    for action in ACTIONS:
        for seed in range(SHOTS):
            encoded, _ = classifier.encode_one(clip(action, seed))
            encoded.name = f"{action}/{seed + 1}.mp4"
            classifier.add_encoded(action, [encoded])
    query, pixels = classifier.encode_one(clip(ACTIONS[0], QUERY))
    query.name = "new.mp4"
    draw(classifier.explain_encoded(query, pixels), Path(__file__).parent / "images" / "why.png")


if __name__ == "__main__":
    main()
