"""Data: splits, readers of videos and frames, the frame cache, transforms, and episodes of uint8 clips."""
