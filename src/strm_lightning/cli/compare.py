"""``strm compare``: paired differences of test results on the same episodes."""

import json as json_format
from collections.abc import Sequence
from pathlib import Path

from strm_lightning.errors import InputError
from strm_lightning.evaluation.paired import compare_documents, comparison_text
from strm_lightning.evaluation.results_file import RESULTS, load_results


def compare(
    *results: str, allow: Sequence[str] = (), latex: bool = False, markdown: bool = False, json: bool = False
) -> None:
    """Compare test results with the first one, episode by episode.

    All results must be of the same episodes. The difficulty of an episode cancels in the difference of two accuracies,
    so the interval of the difference is narrower than those of the accuracies. There are three intervals: over other
    episodes of the same clips, over other clips of the same classes, and over other classes.

    Runs that differ in the training seed alone are one group: the table shows their mean and the standard deviation
    over seeds, and differences are those of the means.

    Args:
        results: two or more results.json files, or folders that contain one; the first is the baseline.
        allow: entries of the protocol card that may differ, such as [num_frames]; the episodes must be the same.
        latex: print a LaTeX table.
        markdown: print a Markdown table.
        json: print JSON with all numbers.
    """
    if len(results) < 2:
        raise InputError("give at least two results.json files to compare")
    documents = {name: load_results(name) for name in results}
    if len({(path / RESULTS if path.is_dir() else path).resolve() for path in map(Path, results)}) < len(results):
        raise InputError("the same results.json is given twice")
    found = compare_documents(documents, allow=allow)
    if json:
        print(json_format.dumps(found, indent=1))
    else:
        print(comparison_text(found, "latex" if latex else "markdown" if markdown else "plain"))
