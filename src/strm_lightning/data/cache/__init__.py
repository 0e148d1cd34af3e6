"""The frame cache: one clip file for each video."""
