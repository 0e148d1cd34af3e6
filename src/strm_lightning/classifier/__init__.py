"""Few-shot classifier for videos: predicts labels with probabilities from a few example clips of each class."""

from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.predictions import UNKNOWN, Prediction, WindowPrediction

__all__ = ["UNKNOWN", "FewShotClassifier", "Prediction", "WindowPrediction"]
