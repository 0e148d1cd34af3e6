"""The part of the page that checks the examples: each is left out in turn and recognised with the others."""

from html import escape

import gradio as gr

from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.explain.explanation import MEANING
from strm_lightning.errors import InputError
from strm_lightning.messages import count_of
from strm_lightning.web.session_store import SessionStore

_INTRODUCTION = """Each example is left out in turn and recognised with the others. This shows which actions are
confused, and which examples look like another action: play them, and remove or record them again."""


def add_check_panel(store: SessionStore) -> None:
    """Add the panel to the page that is being built.

    Args:
        store: the sessions.
    """

    def check(request: gr.Request) -> str:
        try:
            return report(store.of(str(request.session_hash)).snapshot())
        except InputError as error:
            return f'<p class="check">{escape(str(error))}</p>'

    gr.Markdown(_INTRODUCTION)
    button = gr.Button("Check the examples", variant="secondary")
    found = gr.HTML(elem_id="check", apply_default_css=False)
    button.click(check, None, found, concurrency_id="check", concurrency_limit=1)


def report(classifier: FewShotClassifier) -> str:
    """Return the check of the examples as HTML.

    Raises:
        InputError: there are too few examples.
    """
    support = classifier.support
    if len(support.labels) < 2 or sum(shots > 1 for shots in support.shots) < 2:
        raise InputError("Two actions or more need two examples or more each: record some first.")
    logits, targets = support.leave_one_out()
    found = logits.argmax(1).tolist()
    labels, selection = support.labels, classifier.selection_
    lines = [f"Examples that are left out are recognised: <strong>{escape(str(selection.left_out))}</strong>."]
    if selection.weights:
        ranked = sorted(selection.weights, key=lambda name: -selection.weights[name])
        weighed = ", ".join(f"{escape(MEANING[name])} {selection.weights[name]:.0%}" for name in ranked)
        lines.append(f"What is compared, by weight: {weighed}.")
    wrong = [
        (float(logits[row, b] - logits[row, a]), support.clips[labels[a]][k].name, labels[a], labels[b])
        for row, ((a, k), b) in enumerate(zip(support.left_out_clips(), found, strict=True))
        if a != b
    ]
    table = _confusions(labels, targets.tolist(), found)
    suspects = "".join(
        f"<li><strong>{escape(name)}</strong> of {escape(label)} looks like {escape(other)}</li>"
        for _, name, label, other in sorted(wrong, reverse=True)
    )
    title = f"{count_of(wrong, 'example')} to look at" if wrong else "No example looks like another action."
    text = "".join(f"<p>{line}</p>" for line in lines)
    return f'<div class="check">{text}{table}<h3>{title}</h3><ul>{suspects}</ul></div>'


def _confusions(labels: list[str], targets: list[int], found: list[int]) -> str:
    """Table of counts: a row for each action, a column for each answer."""
    pairs = list(zip(targets, found, strict=True))
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in labels)
    rows = []
    for i, label in enumerate(labels):
        counts = [pairs.count((i, j)) for j in range(len(labels))]
        cells = "".join(
            f'<td class="{"right" if i == j else "wrong" if number else "none"}">{number or ""}</td>'
            for j, number in enumerate(counts)
        )
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    caption = "Number of examples: action (rows) and answer (columns)"
    body = f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table><caption>{caption}</caption>{body}</table></div>'
