"""Files of weights: reading, hashing, packages."""
