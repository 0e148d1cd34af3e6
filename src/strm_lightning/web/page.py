"""The web page of ``strm demo``: classify an uploaded video from uploaded clips of each action."""

import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.examples import add_examples, check_labels
from strm_lightning.classifier.explain.explanation import Explanation
from strm_lightning.classifier.explain.picture import draw
from strm_lightning.classifier.support import EncodedClip
from strm_lightning.data.decode.video import VIDEO_SUFFIXES, VideoError
from strm_lightning.errors import InputError
from strm_lightning.web.uploads import Guard, Upload, Uploads

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import gradio as gr
from starlette.middleware import Middleware

MAX_CLASSES = 8
_SHOWN = 3
_DELETE_CACHE = (60, 600)  # seconds: gradio checks the uploaded files every minute and deletes those older than ten
# Functions of t in -1 .. 1 that return offsets to the right and down.
_PATHS: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "slide left": lambda t: (-t, 0 * t),
    "slide right": lambda t: (t, 0 * t),
    "circle": lambda t: (np.sin(np.pi * t), -np.cos(np.pi * t)),
}
_INTRODUCTION = """# Which action is it?
Upload a few short clips of at least two actions, and a video to recognise.
No training takes place and no file leaves this computer; uploaded files are deleted after encoding."""
_CSS = """
.gradio-container {max-width: 1180px !important; margin: auto}
footer {display: none !important}
.action {gap: 6px !important}
"""


def build(make: Callable[[], FewShotClassifier], examples: Path, uploads: Uploads) -> gr.Blocks:
    """Build the page.

    Args:
        make: returns a new classifier without examples.
        examples: folder for the built-in examples, which are drawn at the first request.
        uploads: stores the encoded clips.
    """
    encode = make().encode_one

    def keep(request: gr.Request, query: str | None, *clips: list[str] | None) -> None:
        listed = [*([query] if query else []), *(path for slot in clips for path in slot or [])]
        uploads.keep(_session(request), listed, encode, delete=lambda path: examples not in Path(path).parents)

    def forget(request: gr.Request) -> None:
        uploads.drop(_session(request))

    def recognise(request: gr.Request, query: str | None, *slots: Any) -> tuple[Any, Any, str]:
        session = _session(request)
        try:
            classes = _classes(slots[:MAX_CLASSES], slots[MAX_CLASSES:])
            if query is None:
                raise InputError("There is no video to recognise yet: upload one in the last field.")
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                explanation = _explain(make(), dict(classes), query, lambda path: uploads.get(session, path, encode))
        except InputError as error:
            return gr.update(value=None, visible=False), gr.update(value=None, visible=False), _markdown(str(error))
        figure = draw(explanation)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = np.asarray(canvas.buffer_rgba())[..., :3]
        notes = _markdown("  \n".join(str(warning.message) for warning in found))
        ranking = dict(explanation.prediction.probabilities)
        return gr.update(value=ranking, visible=True), gr.update(value=picture, visible=True), notes

    def built_in() -> list[Any]:
        files = draw_examples(examples)
        names = [*files][:MAX_CLASSES]
        blank = [None] * (MAX_CLASSES - len(names))
        return [str(files[names[-1]][-1]), *names, *blank, *([str(f) for f in files[n][:-1]] for n in names), *blank]

    with gr.Blocks(title="strm demo", analytics_enabled=False, delete_cache=_DELETE_CACHE) as page:
        gr.Markdown(_INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                slots = [_slot(i) for i in range(MAX_CLASSES)]
                with gr.Row():
                    more = gr.Button("Add an action", size="sm")
                    fill = gr.Button("Use built-in examples", size="sm")
            with gr.Column(scale=3, min_width=300):
                query = gr.File(label="Video to recognise", file_types=sorted(VIDEO_SUFFIXES), height=120)
                go = gr.Button("Recognise", variant="primary")
                message = gr.Markdown(elem_id="message")
                ranking = gr.Label(label="Ranking", num_top_classes=5, visible=False)
                picture = gr.Image(show_label=False, visible=False, buttons=["download", "fullscreen"])
        count = gr.State(_SHOWN)
        names, clips = [slot[1] for slot in slots], [slot[2] for slot in slots]
        groups = [slot[0] for slot in slots]
        one_by_one: dict[str, Any] = {"concurrency_id": "encode", "concurrency_limit": 1}
        changes = [field.change for field in (query, *clips)]
        gr.on(changes, keep, [query, *clips], None, show_progress="hidden", trigger_mode="multiple", **one_by_one)
        page.unload(forget)
        results = [ranking, picture, message]
        go.click(recognise, [query, *names, *clips], results, show_progress="minimal", **one_by_one)
        fill.click(built_in, None, [query, *names, *clips])
        more.click(_one_more, count, [count, more, *groups])
    return page


def check_address(host: str, port: int | None) -> None:
    """Check that the server can listen on an address, before a model is loaded.

    Raises:
        InputError: the port is in use, or the address does not belong to this computer.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port or 0), family=family).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"the page cannot listen on {host}, port {port or 'any'}: {reason}") from error


def serve(page: gr.Blocks, uploads: Uploads, *, host: str, port: int | None, max_mb: int, block: bool = True) -> str:
    """Start the server and return its address; with ``block``, return when the server stops."""
    fonts = ["system-ui", "sans-serif"]  # the default fonts of gradio's themes are downloaded
    theme = gr.themes.Default(font=fonts, font_mono=["monospace"], primary_hue="blue")
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        max_file_size=f"{max_mb}mb",
        share=False,
        app_kwargs={"middleware": [Middleware(Guard, host=host, uploads=uploads)]},
        ssr_mode=False,
        footer_links=[],
        theme=theme,
        css=_CSS,
        prevent_thread_lock=True,
        quiet=True,
    )
    if block:
        sys.stdout.write(f"The page is at {address} (Ctrl-C stops it).\n")
        sys.stdout.flush()
        page.block_thread()
    return str(address)


def draw_examples(folder: Path, clips: int = 4) -> dict[str, list[Path]]:
    """Return clips of a moving ball for three classes; draw those that do not exist in the folder."""
    found: dict[str, list[Path]] = {}
    for number, label in enumerate(_PATHS):
        found[label] = [folder / f"{label.replace(' ', '_')}_{i + 1}.mp4" for i in range(clips)]
        for i, path in enumerate(found[label]):
            if not path.exists():
                _draw_ball(path, label, np.random.default_rng([number, i]))
    return found


def _session(request: gr.Request) -> str:
    return str(request.session_hash)


def _explain(
    classifier: FewShotClassifier, classes: dict[str, tuple[str, ...]], query: str, get: Callable[[str], Upload]
) -> Explanation:
    """Explain the prediction of an encoded query from encoded clips.

    Raises:
        InputError: a class has no readable clip, or the query cannot be read.
    """

    def clips(videos: Iterable[Any]) -> Iterator[EncodedClip | VideoError]:
        for upload in map(get, videos):
            # a copy, since a support set replaces the features of its clips by views of its own tensors
            yield replace(upload.clip) if upload.clip is not None else cast("VideoError", upload.error)

    check_labels(classes)
    add_examples(classifier.support, classes, clips)
    upload = get(query)
    if upload.clip is None or upload.pixels is None:
        raise cast("VideoError", upload.error)
    return classifier.explain_encoded(replace(upload.clip), upload.pixels)


def _slot(number: int) -> tuple[gr.Column, gr.Textbox, gr.File]:
    with gr.Column(visible=number < _SHOWN, min_width=200, elem_classes="action") as group:
        name = gr.Textbox(show_label=False, placeholder=f"Name of action {number + 1}", container=False)
        clips = gr.File(
            label=f"Clips of action {number + 1}", file_count="multiple", file_types=sorted(VIDEO_SUFFIXES), height=120
        )
    return group, name, clips


def _one_more(count: int) -> list[Any]:
    count = min(count + 1, MAX_CLASSES)
    groups = [gr.update(visible=i < count) for i in range(MAX_CLASSES)]
    return [count, gr.update(interactive=count < MAX_CLASSES), *groups]


def _classes(names: Any, clips: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the names and files of the slots in use.

    Raises:
        InputError: a name or a file is missing, two names are equal, or there are fewer than two classes.
    """
    found: dict[str, tuple[str, ...]] = {}
    for i, (name, files) in enumerate(zip(names, clips, strict=True), start=1):
        label = (name or "").strip()
        if files and not label:
            raise InputError(f"Action {i} has clips but no name: enter a name.")
        if label and not files:
            raise InputError(f"Action {label!r} has no clips yet: upload at least one.")
        if label in found:
            raise InputError(f"Two actions are named {label!r}: merge their clips or rename one.")
        if label:
            found[label] = tuple(files)
    if len(found) < 2:
        raise InputError("Give at least two actions, each with a name and at least one clip.")
    return tuple(found.items())


def _markdown(text: str) -> str:
    """Format a message in bold; paths of uploads are reduced to file names."""
    parts = (
        Path(part.rstrip(":")).name + ":" * part.endswith(":") if "/" in part else part for part in text.split(" ")
    )
    return f"**{' '.join(parts)}**" if text else ""


def _draw_ball(path: Path, label: str, rng: np.random.Generator, frames: int = 30) -> None:
    """Draw a moving ball over a static background; colour, size and position are random."""
    path.parent.mkdir(parents=True, exist_ok=True)
    background = rng.integers(40, 130, (12, 16, 3), dtype=np.uint8).repeat(15, 0).repeat(15, 1)
    rows, columns = np.mgrid[:180, :240]
    colour, radius, (down, right) = rng.integers(150, 255, 3), rng.uniform(14, 22), rng.uniform(-12, 12, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=15)
        stream.width, stream.height, stream.pix_fmt = 240, 180, "yuv420p"
        for x, y in np.stack(_PATHS[label](np.linspace(-1, 1, frames)), 1):
            image = background.copy()
            image[(rows - 90 - down - 45 * y) ** 2 + (columns - 120 - right - 65 * x) ** 2 < radius**2] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
