"""Paired differences of test results on the same episodes, with 95 % intervals."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os.path import commonprefix
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from strm_lightning.errors import InputError
from strm_lightning.evaluation.intervals import all_intervals, mean_intervals
from strm_lightning.evaluation.results import EpisodeResults, half_interval
from strm_lightning.evaluation.results_file import results_of
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
        intervals: intervals over episodes, clips and classes; empty if only the accuracy of episodes is known.
    """

    difference: float
    ci95: float
    bootstrap: tuple[float, float]
    episodes: int
    intervals: dict[str, dict[str, Any]] = field(default_factory=dict)


def comparison_text(found: Mapping[str, Any], style: Literal["plain", "markdown", "latex"] = "plain") -> str:
    """Format differences as tables: overall, per way and shot, per class. The plain style adds a conclusion.

    Args:
        found: return value of `compare_documents`.
        style: format of the tables.
    """
    table = {"plain": plain_table, "markdown": markdown_table, "latex": latex_table}[style]
    parts = [table(*part) for part in (_overall(found), _seeds(found), _sweep(found), _per_class(found)) if part[1]]
    return "\n\n".join(parts if style != "plain" else [*parts, _conclusion(found)])


def compare_documents(documents: Mapping[str, Mapping[str, Any]], *, allow: Sequence[str] = ()) -> dict[str, Any]:
    """Compute the paired difference of every result to the first one.

    Args:
        documents: contents of results.json files by name; the first is the baseline.
        allow: entries of the protocol card that may differ.

    Returns:
        A dictionary with ``baseline``, its name, and ``results``: for each name ``accuracy``, ``ci95`` and ``sweep``,
        the same for each way and shot; except for the baseline also ``paired``, its `Difference`, and ``per_class``,
        the `Difference` of each class. For a group of runs that differ in the training seed, ``accuracy`` is the mean
        over its runs, and ``seeds`` contains the number of runs, their accuracies and the standard deviation.

    Raises:
        InputError: the protocol cards or the episodes differ, or ``allow`` names an entry that no card has.
    """
    first_name, first_document = next(iter(documents.items()))
    every = {name: results_of(document) for name, document in documents.items()}
    first = every[first_name]
    for name, document in [*documents.items()][1:]:
        _check_cards(first_name, first_document, name, document, allow)
        same = all(np.array_equal(getattr(first, part), getattr(every[name], part)) for part in ("index", "actual"))
        if not same:
            message = "have different episodes, although their protocol cards are equal"
            raise InputError(f"{first_name} and {name} {message}")
    clips = next((results for results in every.values() if results.support is not None), first)
    classes = first_document["confusion"]["classes"]
    groups = group_seeds(documents)
    baseline, *others = groups
    found = {
        name: _own([documents[run] for run in runs], [every[run] for run in runs]) for name, runs in groups.items()
    }
    values = {name: np.mean([every[run].right for run in runs], 0) for name, runs in groups.items()}
    rates = {name: _rates([documents[run] for run in runs]) for name, runs in groups.items()}
    for name in others:
        differences = values[name] - values[baseline]
        paired = paired_difference(values[baseline].mean(1), values[name].mean(1))
        found[name]["paired"] = asdict(replace(paired, intervals=mean_intervals(differences, clips)))
        found[name]["per_class"] = {
            label: asdict(paired_difference(*pair))
            for number, label in enumerate(classes)
            if len((pair := tuple(_of_class(values[n], first, number) for n in (baseline, name)))[0])
        }
        for setting, row in found[name]["sweep"].items():
            if setting in rates[baseline]:
                row["paired"] = asdict(paired_difference(rates[baseline][setting], rates[name][setting]))
    return {"baseline": baseline, "results": found}


def group_seeds(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Group results whose models differ in the training seed alone.

    Two results are of one group if all options of their models and of the data of their training are equal. The name of
    a group is the common start of the names of its results.

    Args:
        documents: contents of results.json files by name.

    Returns:
        Names of the results of each group, by the name of the group, in the order of ``documents``.
    """
    groups: list[list[str]] = []
    keys: list[tuple[str, set[Any]]] = []  # options and seeds of each group
    for name, document in documents.items():
        card = document["card"]
        checkpoint = card["checkpoint"]
        training = {key: value for key, value in (checkpoint.get("training") or {}).items() if key != "seed"}
        key, seed = json.dumps([card.get("model"), training], sort_keys=True), checkpoint.get("seed")
        at = next((n for n, (other, seeds) in enumerate(keys) if other == key and seed not in seeds), None)
        if seed is None or at is None:
            groups.append([name])
            keys.append((key if seed is not None else "", {seed}))
        else:
            groups[at].append(name)
            keys[at][1].add(seed)
    named: dict[str, list[str]] = {}
    for names in groups:
        start = commonprefix(names).rstrip("-_/.0123456789") or names[0]  # noqa: RUF071 (of names, not of folders)
        label = names[0] if len(names) == 1 else f"{start} ({len(names)} seeds)"
        named[label if label not in named else f"{names[0]} and {len(names) - 1} more"] = names
    return named


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


def _own(documents: Sequence[Mapping[str, Any]], results: Sequence[EpisodeResults]) -> dict[str, Any]:
    """Return the accuracy and intervals of a result, or of the mean of the results of a group."""
    values = np.mean([r.right for r in results], 0)
    known = next((r for r in results if r.support is not None), results[0])
    accuracies = [float(r.accuracy) for r in results]
    own = {
        "accuracy": float(values.mean()),
        "ci95": half_interval(values.mean(1)),
        "intervals": all_intervals(known, values),
        "sweep": {
            setting: {"accuracy": float(rates.mean()), "ci95": half_interval(rates)}
            for setting, rates in _rates(documents).items()
        },
    }
    if len(results) > 1:
        own["seeds"] = {"number": len(results), "accuracies": accuracies, "std": float(np.std(accuracies, ddof=1))}
    return own


def _rates(documents: Sequence[Mapping[str, Any]]) -> dict[str, Float[np.ndarray, " E"]]:
    """Return the accuracy of each episode for each way and shot of a sweep, averaged over the results."""
    every = [{_setting(row): np.array(row["per_episode"]) for row in document["sweep"]} for document in documents]
    common = [setting for setting in every[0] if all(setting in rates for rates in every)]
    return {setting: np.mean([rates[setting] for rates in every], 0) for setting in common}


def _of_class(values: Float[np.ndarray, "E Q"], results: EpisodeResults, label: int) -> Float[np.ndarray, " e"]:
    """Return the mean value of the queries of one class in each episode that contains it."""
    mine = results.actual == label
    there = mine.any(1)
    return (values * mine).sum(1)[there] / mine.sum(1)[there]


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
        row = [name, f"{result['accuracy']:.1%}", *_widths(result["intervals"])]
        if "paired" in result:
            low, high = result["paired"]["bootstrap"]
            row += [f"{100 * result['paired']['difference']:+.1f}", *_widths(result["paired"]["intervals"])]
            row.append(f"{100 * low:+.1f} … {100 * high:+.1f}")
        else:
            row += [""] * 5
        rows.append(row)
    over = ["episodes", "clips", "classes"]
    return ["result", "accuracy", *over, "difference", *over, "bootstrap of episodes"], rows


def _seeds(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [name, f"{result['accuracy']:.1%}", f"{seeds['std']:.1%}", ", ".join(f"{a:.1%}" for a in seeds["accuracies"])]
        for name, result in found["results"].items()
        if (seeds := result.get("seeds"))
    ]
    return ["training seeds", "mean", "standard deviation", "of each"], rows


def _widths(intervals: Mapping[str, Any]) -> list[str]:
    widths = [intervals[name]["ci95"] for name in ("episodes", "clips", "classes")]
    return ["?" if width is None else f"± {100 * width:.1f}" for width in widths]


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


def _plus_minus(paired: Mapping[str, Any]) -> str:
    return f"{100 * paired['difference']:+.1f} ± {100 * paired['ci95']:.1f}"


def _conclusion(found: Mapping[str, Any]) -> str:
    lines = [
        f"Differences to {found['baseline']} in percentage points, with 95 % intervals over episodes, clips, classes."
    ]
    results = found["results"].values()
    both = [intervals for r in results for intervals in (r["intervals"], r.get("paired", {}).get("intervals", {}))]
    unknown = {f"over {n}: {i['unknown']}" for intervals in both for n, i in intervals.items() if i["unknown"]}
    lines += [f"? not known {reason}." for reason in sorted(unknown)]
    for name, result in found["results"].items():
        if paired := result.get("paired"):
            size, word = abs(paired["difference"]), "better" if paired["difference"] > 0 else "worse"
            certain = [n for n, i in paired["intervals"].items() if i["ci95"] is not None and size > i["ci95"]]
            lines.append(f"{name} is {word} {_scope(certain)}." if certain else f"{name}: no significant difference.")
    return "\n".join(lines)


def _scope(certain: Sequence[str]) -> str:
    """Describe what a difference is significant for."""
    if "classes" in certain:
        return "on other classes too"
    return "on other clips of these classes too" if "clips" in certain else "on these clips"
