"""Few-shot recognition of one's own videos: clips in, labels with probabilities and reasons out."""

from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.predictions import UNKNOWN, Prediction, WindowPrediction

__all__ = ["UNKNOWN", "FewShotClassifier", "Prediction", "WindowPrediction"]
