"""Layout of the web page of ``strm demo``."""

import os
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import gradio as gr

from strm_lightning.web.check_panel import add_check_panel
from strm_lightning.web.long_video_panel import add_long_video_panel
from strm_lightning.web.session_store import SessionStore
from strm_lightning.web.studio import add_studio, style_sheet

_DELETE_CACHE = (60, 600)  # seconds: gradio checks the uploaded files every minute and deletes those older than ten
_INTRODUCTION = """# Which action is it?
Record or upload a few examples of each action, then let the camera or a video show one of them. Nothing is trained, and
no picture leaves this computer: recordings and files are encoded and then deleted."""
_CSS = """
.gradio-container { max-width: 1240px !important; margin: auto; }
footer { display: none !important; }
.gradio-container .html-container { padding: 0 !important; }
body:not(.dark) { --color-accent: #2563a8; }
.gradio-container input[type=range]:focus-visible { outline: 3px solid #5b9bd5; outline-offset: 1px; }
"""


def build_page(store: SessionStore, folder: Path, max_mb: int) -> gr.Blocks:
    """Build the page.

    Args:
        store: the sessions.
        folder: folder for uploads and files to download.
        max_mb: largest size of an uploaded file, in megabytes.
    """

    def open_session(request: gr.Request) -> dict[str, Any]:
        store.open(str(request.session_hash))
        return {"session": request.session_hash}

    def close_session(request: gr.Request) -> None:
        store.drop(str(request.session_hash))

    with gr.Blocks(title="strm demo", analytics_enabled=False, delete_cache=_DELETE_CACHE) as page:
        gr.Markdown(_INTRODUCTION)
        studio = add_studio(store, folder, max_mb)
        with gr.Tab("Check the examples"):
            add_check_panel(store)
        with gr.Tab("Long video"):
            add_long_video_panel(store, studio)
        page.load(open_session, None, studio, show_progress="hidden")
        page.unload(close_session)
    return page


def page_head() -> str:
    """Return the elements for the head of the page."""
    return f"<style>{_CSS}{style_sheet()}</style>"
