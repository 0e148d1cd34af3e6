"""The part of the page that checks the examples: each is left out in turn and recognised with the others."""

from collections.abc import Sequence
from html import escape

import gradio as gr

from strm_lightning.classifier.check import Check
from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.explain.explanation import MEANING, by_kernel
from strm_lightning.errors import InputError
from strm_lightning.web.session_store import SessionStore

_INTRODUCTION = """Each example is left out in turn and recognised with the others. This shows which actions are
confused, and which examples may have the wrong name: play them, and remove or record them again."""


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
    found = classifier.check() if len(classifier.classes_) > 1 else None
    if found is None or found.left_out is None:
        raise InputError("At least two actions, and two examples of one of them, are needed: record some first.")
    lines = [f"Expected accuracy: <strong>{escape(str(found.left_out))}</strong>"]
    weights = by_kernel(classifier.selection_.weights)
    if weights:
        ranked = sorted(weights, key=lambda name: -weights[name])
        lines.append(f"What is compared: {', '.join(f'{MEANING[name]} {weights[name]:.0%}' for name in ranked)}.")
    if found.needs_clips:
        lines.append(f"More examples are needed of: {escape(', '.join(found.needs_clips))}.")
    suspects = [
        f"<strong>{escape(s.clip)}</strong> of {escape(s.label)} looks like {escape(s.looks_like)} "
        f"({s.probability:.2f})"
        for s in found.suspects
    ]
    same = [
        f"<strong>{escape(a.first[1])}</strong> of {escape(a.first[0])} and <strong>{escape(a.second[1])}</strong> of "
        f"{escape(a.second[0])}"
        for a in found.duplicates
    ]
    text = "".join(f"<p>{line}</p>" for line in lines)
    lists = _listed("Examples that may have the wrong name", suspects) + _listed("Examples that show the same", same)
    return f'<div class="check">{text}{_table(found)}{lists}</div>'


def _listed(title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    return f"<h3>{title}</h3><ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _table(found: Check) -> str:
    """Table with a row for each action: how many examples are recognised, and as what the others are."""
    rows = []
    for label, left_out in found.by_class.items():
        others = [f"{c.predicted} {c.clips}" for c in found.confusions if c.actual == label]
        kind = "right" if left_out.right == left_out.clips else "wrong"
        rows.append(
            f'<tr><th scope="row">{escape(label)}</th><td class="{kind}">{left_out.right} of {left_out.clips}</td>'
            f"<td>{escape(', '.join(others))}</td></tr>"
        )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Action", "Recognised", "Confused with"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'
