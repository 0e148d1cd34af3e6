"""The picture of an explanation in the width of the page."""

from io import BytesIO

from strm_lightning.classifier.explain.explanation import Explanation
from strm_lightning.classifier.explain.picture import draw

_PIXELS_AN_INCH = 96  # of CSS
_SHARPNESS = 2  # pixels of the picture a CSS pixel


def draw_explanation(explanation: Explanation, width: int, *, dark: bool) -> bytes:
    """Draw an explanation as PNG, without its sentences, which the page shows as text.

    Args:
        explanation: the explanation.
        width: width of the picture on the page, in CSS pixels.
        dark: light text on a dark background.
    """
    figure = draw(explanation, width=width / _PIXELS_AN_INCH, dark=dark, sentences=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_PIXELS_AN_INCH * _SHARPNESS)
    return buffer.getvalue()
