"""Limits that readers check before decoding, so that a small damaged file cannot exhaust memory.

Real data is far below them: an 8K frame has 33 million pixels.
"""

MAX_PIXELS = 2**26  # of one frame; 192 MB as RGB
MAX_BYTES = 4 * MAX_PIXELS  # of one image file, or of one uncompressed entry of a zip
MAX_FRAMES = 10**7  # of one video; 111 hours at 25 frames a second


def refuse_size(height: int, width: int) -> str | None:
    """Return the error for a frame of this size, or None if it can be decoded."""
    if height < 1 or width < 1:
        return f"has a frame of {width} x {height} pixels"
    if height * width > MAX_PIXELS:
        return f"has a frame of {width} x {height} pixels; at most {MAX_PIXELS / 1e6:.0f} million are decoded"
    return None
