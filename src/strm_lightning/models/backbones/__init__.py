"""Backbones: compute feature maps of clips."""
