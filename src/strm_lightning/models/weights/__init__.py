"""Weight files: safe reading, hashes, packaged weights."""
