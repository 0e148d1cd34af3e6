"""Frame cache: one clip file for each video."""
