"""One sentence for each matching method, for explanations."""

_SENTENCES = {
    "trm": "TRM compares ordered groups of frames of the video with those of the examples, by attention.",
    "otam": "OTAM aligns the frames of the video and of an example in their order.",
    "bi_mhm": "Each frame is matched with the most similar frame of the other clip, both ways; order is ignored.",
    "chamfer": "Frames are matched with the most similar frame of the other clip; order is ignored.",
    "diagonal": "Frame 1 is compared with frame 1, frame 2 with frame 2 and so on.",
    "linear": "Every frame is compared with every frame of the examples, with a learned weight for each pair.",
    "max": "The most similar pair of frames counts; order is ignored.",
    "pairs": "Every frame is compared with every frame of the examples; order is ignored.",
    "mean": "The average look of the video is compared with that of the examples; motion and order are ignored.",
    "patches": "What changes at each place of the frame is compared with the examples, frame by frame.",
    "lag": "What changes at each place of the frame is compared with the examples; an early or late start is allowed.",
    "energy": "How much changes at each place of the frame over time is compared with the examples.",
    "motionmap": "Where changes happen in the whole clip is compared with the examples; their order is ignored.",
    "meanpatch": "The average look of each place of the frame is compared with the examples; motion is ignored.",
    "lag_energy": "What changes at each place of the frame, and how much, is compared with the examples; an early "
    "or late start is allowed.",
    "ridge": "A linear classifier is fitted to all examples at once.",
    "kernel_ridge": "Several measures of similarity with the examples are weighed by a classifier that is fitted to "
    "all examples at once.",
    "auto": "What changes at each place of the frame, and how much, is compared with the examples; with several "
    "examples of an action, several measures of similarity are weighed.",
}


def describe_method(matching: str) -> str:
    """Return a sentence that says what a matching method compares; a registered method of a user is only named."""
    return _SENTENCES.get(matching, f"The clips are compared by the matching method {matching!r}.")
