"""Start the server of the web page."""

import os
import socket
import sys

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import gradio as gr
from starlette.middleware import Middleware

from strm_lightning.errors import InputError
from strm_lightning.web.guard import Guard
from strm_lightning.web.page import page_head
from strm_lightning.web.session_store import SessionStore

_BLUE, _DARK_BLUE = "#2563a8", "#1d4f87"  # as in studio.css; white text on gradio's own blue has too little contrast


def check_address(host: str, port: int | None) -> None:
    """Check that the server can listen on an address, before a model is loaded.

    Raises:
        InputError: the port is in use or no port, or the address does not belong to this computer.
    """
    if port is not None and not 0 <= port < 2**16:
        raise InputError(f"the page cannot listen on port {port}: give a number from 0 to 65535, or none")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port or 0), family=family).close()
    except OSError as error:
        raise InputError(
            f"the page cannot listen on {host}, port {port or 'any'}: {error.strerror or error}"
        ) from error


def serve(page: gr.Blocks, store: SessionStore, *, host: str, port: int | None, max_mb: int, block: bool = True) -> str:
    """Start the server and return its address; with ``block``, return when the server stops."""
    os.environ["GRADIO_RUN_HISTORY"] = "False"  # gradio would keep the answers in the storage of the browser
    fonts = ["system-ui", "sans-serif"]  # the default fonts of gradio's themes are downloaded
    theme = gr.themes.Default(font=fonts, font_mono=["monospace"], primary_hue="blue").set(
        button_primary_background_fill=_BLUE,
        button_primary_background_fill_dark=_BLUE,
        button_primary_background_fill_hover=_DARK_BLUE,
        button_primary_background_fill_hover_dark=_DARK_BLUE,
    )
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        max_file_size=f"{max_mb}mb",
        share=False,
        app_kwargs={"middleware": [Middleware(Guard, host=host, room=store.room)]},
        ssr_mode=False,
        footer_links=[],
        theme=theme,
        head=page_head(),
        prevent_thread_lock=True,
        quiet=True,
    )
    if block:
        sys.stdout.write(f"The page is at {address} (Ctrl-C stops it).\n")
        sys.stdout.flush()
        page.block_thread()
    return str(address)
