"""Paired differences of test results on the same episodes, with 95 % intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from strm_lightning.errors import InputError
from strm_lightning.evaluation.report import results_of
from strm_lightning.evaluation.results import half_interval
from strm_lightning.evaluation.tables import latex_table, markdown_table, plain_table
from strm_lightning.messages import some_of

_BOOTSTRAPS = 10_000


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences over episodes, a fraction; positive if the second model is better.

    Attributes:
        difference: accuracy of the second model minus accuracy of the first.
        ci95: half-width of the 95 % interval, 1.96 sigma / sqrt(episodes) of the differences.
        bootstrap: lower and upper end of the 95 % interval from resampled episodes.
        episodes: number of episodes.
    """

    difference: float
    ci95: float
    bootstrap: tuple[float, float]
    episodes: int


def comparison_text(found: Mapping[str, Any], style: Literal["plain", "markdown", "latex"] = "plain") -> str:
    """Format differences as tables: overall, per way and shot, per class. The plain style adds a conclusion.

    Args:
        found: return value of `compare_documents`.
        style: format of the tables.
    """
    table = {"plain": plain_table, "markdown": markdown_table, "latex": latex_table}[style]
    parts = [table(*part) for part in (_overall(found), _sweep(found), _per_class(found)) if part[1]]
    return "\n\n".join(parts if style != "plain" else [*parts, _conclusion(found)])


def compare_documents(documents: Mapping[str, Mapping[str, Any]], *, allow: Sequence[str] = ()) -> dict[str, Any]:
    """Compute the paired difference of every result to the first one.

    Args:
        documents: contents of results.json files by name; the first is the baseline.
        allow: entries of the protocol card that may differ.

    Returns:
        A dictionary with ``baseline``, the name of the first, and ``results``. These have for each name ``accuracy``,
        ``ci95`` and ``sweep``, the same for each way and shot; except for the baseline also ``paired``, its
        `Difference`, and ``per_class``, the `Difference` of each class.

    Raises:
        InputError: the protocol cards or the episodes differ, or ``allow`` names an entry that no card has.
    """
    baseline, *others = documents
    first = results_of(documents[baseline])
    classes = documents[baseline]["confusion"]["classes"]
    found: dict[str, Any] = {baseline: _own(documents[baseline])}
    for name in others:
        _check_cards(baseline, documents[baseline], name, documents[name], allow)
        second = results_of(documents[name])
        if not np.array_equal(first.index, second.index) or not np.array_equal(first.actual, second.actual):
            raise InputError(f"{baseline} and {name} have different episodes, although their protocol cards are equal")
        found[name] = _own(documents[name]) | {
            "paired": asdict(paired_difference(first.per_episode, second.per_episode)),
            "per_class": {
                label: asdict(paired_difference(*pair))
                for number, label in enumerate(classes)
                if len((pair := (first.of_class(number), second.of_class(number)))[0])
            },
        }
        for setting, row in found[name]["sweep"].items():
            if setting in (base := _rates(documents[baseline])):
                row["paired"] = asdict(paired_difference(base[setting], _rates(documents[name])[setting]))
    return {"baseline": baseline, "results": found}


def paired_difference(first: Float[np.ndarray, " E"], second: Float[np.ndarray, " E"]) -> Difference:
    """Compute the mean of ``second - first`` over episodes, with two 95 % intervals."""
    differences = second - first
    # The accuracy of an episode has few distinct values, so a bootstrap sample is a multinomial draw over them.
    values, counts = np.unique(np.round(differences, 9), return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(differences), counts / len(differences), size=_BOOTSTRAPS)
    low, high = np.quantile(draws @ values / len(differences), (0.025, 0.975))
    return Difference(
        float(differences.mean()), half_interval(differences), (float(low), float(high)), len(differences)
    )


def _own(document: Mapping[str, Any]) -> dict[str, Any]:
    sweep = {_setting(row): {"accuracy": row["accuracy"], "ci95": row["ci95"]} for row in document["sweep"]}
    return {"accuracy": document["accuracy"], "ci95": document["ci95"], "sweep": sweep}


def _rates(document: Mapping[str, Any]) -> dict[str, Float[np.ndarray, " E"]]:
    """Return the accuracy of each episode for each way and shot of a sweep."""
    return {_setting(row): np.array(row["per_episode"]) for row in document["sweep"]}


def _setting(row: Mapping[str, Any]) -> str:
    return f"{row['way']}-way {row['shot']}-shot"


def _check_cards(
    name: str, first: Mapping[str, Any], other: str, second: Mapping[str, Any], allow: Sequence[str]
) -> None:
    mine, theirs = _comparable(first["card"]), _comparable(second["card"])
    unknown = set(allow) - mine.keys()
    if unknown:
        raise InputError(
            f"allow: the protocol card has no entry {', '.join(sorted(unknown))}; its entries are {', '.join(mine)}"
        )
    differing = [key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key) and key not in allow]
    if differing:
        values = [
            {**protocol, "video_list": _videos(card["card"])}
            for protocol, card in zip((mine, theirs), (first, second), strict=True)
        ]
        listed = "; ".join(
            f"{key} {' and '.join(str(value.get(key)) for value in values)}" for key in sorted(differing)
        )
        raise InputError(f"{name} and {other} cannot be compared, their protocols differ: {listed}")


def _videos(card: Mapping[str, Any]) -> str:
    """Describe the list of videos of a card."""
    data, digest = card["data"], card["protocol"]["video_list"][:15]
    absent = [*data["missing"], *data["unreadable"]]
    rest = f"; {some_of('missing or unreadable', absent)}" if absent else ""
    return f"{digest} ({data['videos']} videos of {data['classes']} classes{rest})"


def _comparable(card: Mapping[str, Any]) -> dict[str, Any]:
    on_test = card["checkpoint"]["chosen_on"] == "test"
    return {**card["protocol"], "chosen_on_test": on_test}


def _overall(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name, result in found["results"].items():
        row = [name, f"{result['accuracy']:.1%} ± {result['ci95']:.1%}"]
        rows.append(row + (_difference_cells(result["paired"]) if "paired" in result else ["", ""]))
    return ["result", "accuracy", "difference, paired", "bootstrap"], rows


def _sweep(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    results = found["results"]
    settings = dict.fromkeys(setting for result in results.values() for setting in result["sweep"])
    rows = []
    for setting in settings:
        of_setting = [result["sweep"].get(setting) for result in results.values()]
        rates = [f"{row['accuracy']:.1%} ± {row['ci95']:.1%}" if row else "" for row in of_setting]
        rows.append(
            [
                setting,
                *rates,
                *(_plus_minus(row["paired"]) if row and "paired" in row else "" for row in of_setting[1:]),
            ]
        )
    return ["episodes", *results, *(f"difference of {name}" for name in [*results][1:])], rows


def _per_class(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    others = {name: result["per_class"] for name, result in found["results"].items() if "per_class" in result}
    labels = sorted({label for classes in others.values() for label in classes})
    rows = [[label, *(_plus_minus(classes[label]) for classes in others.values())] for label in labels]
    return ["class", *(f"difference of {name}" for name in others)], rows


def _difference_cells(paired: Mapping[str, Any]) -> list[str]:
    low, high = paired["bootstrap"]
    return [_plus_minus(paired), f"{100 * low:+.1f} … {100 * high:+.1f}"]


def _plus_minus(paired: Mapping[str, Any]) -> str:
    return f"{100 * paired['difference']:+.1f} ± {100 * paired['ci95']:.1f}"


def _conclusion(found: Mapping[str, Any]) -> str:
    lines = [f"Differences to {found['baseline']} in percentage points, with 95 % intervals over episodes."]
    for name, result in found["results"].items():
        if paired := result.get("paired"):
            significant = abs(paired["difference"]) > paired["ci95"]
            word = "better" if paired["difference"] > 0 else "worse"
            lines.append(f"{name} is {word}." if significant else f"{name}: no significant difference.")
    return "\n".join(lines)
