"""The part of the page that finds actions in a long video and shows them on a time line."""

from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from strm_lightning.classifier.predictions import WindowPrediction, clock, merge_windows
from strm_lightning.data.decode.video import VIDEO_SUFFIXES
from strm_lightning.errors import InputError
from strm_lightning.web.session_store import SessionStore
from strm_lightning.web.upload_folder import uploaded

_INTRODUCTION = """The video is cut into windows that overlap by half; a window should be about as long as the examples.
The slider above decides which windows are `unknown`."""
_COLOURS = ("#2563a8", "#c2410c", "#2f855a", "#805ad5", "#b7791f", "#0e7490", "#be185d", "#4d7c0f")
_UNKNOWN = "#9aa5b1"


def add_long_video_panel(store: SessionStore) -> None:
    """Add the panel to the page that is being built.

    Args:
        store: the sessions.
    """

    def find(request: gr.Request, file: str | None, seconds: float) -> Iterator[Any]:
        if file is None:
            yield "<p>Choose a video first.</p>"
            return
        found: list[WindowPrediction] = []
        try:
            with uploaded(file) as video:
                classifier = store.of(str(request.session_hash)).snapshot()
                windows = classifier.predict_windows(video, seconds=seconds)
                while True:
                    with store.lock:  # one clip is encoded at a time
                        window = next(windows, None)
                    if window is None:
                        break
                    found.append(window)
                    yield timeline(found, finished=False)
            yield timeline(found, finished=True)
        except InputError as error:
            yield f'<p class="events">{escape(str(error))}</p>' + (timeline(found, finished=True) if found else "")

    gr.Markdown(_INTRODUCTION)
    with gr.Row():
        file = gr.File(label="Long video", file_types=sorted(VIDEO_SUFFIXES), height=140)
        with gr.Column():
            seconds = gr.Slider(0.5, 10, value=3, step=0.5, label="Seconds of a window")
            start = gr.Button("Find the actions", variant="primary")
            stop = gr.Button("Stop")
    shown = gr.HTML(elem_id="events", apply_default_css=False)
    limits: dict[str, Any] = {"concurrency_id": "long video", "concurrency_limit": 2, "show_progress": "hidden"}
    running = start.click(find, [file, seconds], shown, **limits)
    stop.click(None, None, None, cancels=[running])


def timeline(windows: list[WindowPrediction], *, finished: bool) -> str:
    """Return the events of a video as a time line and a table, as HTML."""
    events = list(merge_windows(windows))
    end = max(event.end for event in events)
    labels = sorted({event.prediction.label for event in events if not event.prediction.rejected})
    colours = {label: _COLOURS[i % len(_COLOURS)] for i, label in enumerate(labels)}
    bars, rows = [], []
    for event in events:
        label, colour = event.prediction.label, colours.get(event.prediction.label, _UNKNOWN)
        place = f"left:{100 * event.start / end:.2f}%;width:{100 * (event.end - event.start) / end:.2f}%"
        time = f"{clock(event.start)} to {clock(event.end)}"
        title = escape(f"{label}, {time}", quote=True)
        bars.append(f'<span style="{place};background:{colour}" title="{title}"></span>')
        dot = f'<span class="key" style="background:{colour}"></span>'
        rows.append(f"<tr><td>{time}</td><td>{dot}{escape(label)}</td><td>{event.prediction.probability:.2f}</td></tr>")
    state = "Whole video" if finished else f"Seen so far: {clock(end)}"
    head = '<tr><th scope="col">Time</th><th scope="col">Action</th><th scope="col">Probability</th></tr>'
    table = f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
    line = f'<div class="timeline" aria-hidden="true">{"".join(bars)}</div>'
    return f'<div class="events"><p role="status">{state}</p>{line}{table}</div>'
