"""Export a classifier to ONNX: encoding, matching, examples, and a program that runs them without torch."""

from strm_lightning.classifier.export.bundle import export_classifier

__all__ = ["export_classifier"]
