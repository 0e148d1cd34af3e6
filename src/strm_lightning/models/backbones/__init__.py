"""Backbones: clips of pixels to maps."""
