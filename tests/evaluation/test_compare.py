"""Paired comparison: its arithmetic, its refusals, its tables."""

import json
from pathlib import Path

import numpy as np
import pytest

from strm_lightning.cli.main import main
from strm_lightning.evaluation.paired import compare_documents, group_seeds, paired_difference
from strm_lightning.evaluation.results_file import save_results
from strm_lightning.evaluation.tables import latex_table, markdown_table
from tests.evaluation.documents import CLASSES, document, random_results, sweep_row, write


def test_a_paired_difference_is_that_of_the_means_with_a_narrower_interval() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.random(2000)
    first = (rng.random((5, 2000)) < difficulty).mean(0)
    second = np.clip(first + 0.2 * (rng.random(2000) < 0.25), 0, 1)
    found = paired_difference(first, second)
    assert found.difference == pytest.approx(second.mean() - first.mean())
    assert found.ci95 == pytest.approx(1.96 * (second - first).std() / 2000**0.5)
    assert found.ci95 < 0.3 * 1.96 * (first.var() + second.var()) ** 0.5 / 2000**0.5
    low, high = found.bootstrap
    assert low == pytest.approx(found.difference - found.ci95, abs=0.1 * found.ci95)
    assert high == pytest.approx(found.difference + found.ci95, abs=0.1 * found.ci95)


def test_differences_of_classes_add_up_to_the_whole() -> None:
    a, b = random_results(0.4), random_results(0.7)
    found = compare_documents({"a": document(a), "b": document(b)})["results"]["b"]
    assert found["paired"]["difference"] == pytest.approx(b.accuracy - a.accuracy)
    weights = {name: a.by_class(CLASSES)[name]["queries"] / a.actual.size for name in CLASSES}
    total = sum(weights[name] * row["difference"] for name, row in found["per_class"].items())
    assert total == pytest.approx(found["paired"]["difference"])


def test_other_protocols_are_refused_naming_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a", 0.4), write(tmp_path / "b", 0.6, seed=3, num_frames=16)
    with pytest.raises(SystemExit) as caught:
        main(["compare", str(a), str(b)])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "num_frames 8 and 16; seed 0 and 3" in message
    assert message.count("\n") == 1
    documents = {"a": document(random_results(0.4)), "b": document(random_results(0.6), num_frames=16)}
    assert compare_documents(documents, allow=["num_frames"])["results"]["b"]["paired"]["difference"] > 0
    with pytest.raises(ValueError, match="card has no entry frames"):
        compare_documents(documents, allow=["frames"])


def test_a_checkpoint_chosen_on_the_test_split_is_not_compared_with_an_honest_one() -> None:
    honest, flattered = document(random_results(0.4)), document(random_results(0.6), chosen_on="test")
    with pytest.raises(ValueError, match="chosen_on_test False and True"):
        compare_documents({"a": honest, "b": flattered})
    last = document(random_results(0.6), chosen_on="none")  # the last step was nobody's choice
    compare_documents({"a": honest, "b": last})


def test_other_episodes_behind_one_card_are_refused() -> None:
    with pytest.raises(ValueError, match="a and b have different episodes"):
        compare_documents({"a": document(random_results(0.4)), "b": document(random_results(0.4, seed=1))})


def test_the_command_prints_tables_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(write(tmp_path / "a", 0.4).parent), str(write(tmp_path / "b", 0.7))
    main(["compare", a, b])
    text = capsys.readouterr().out
    assert f"{b} is better on other clips of these classes too." in text
    assert all(name in text for name in CLASSES)
    main(["compare", a, b, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["baseline"] == a
    assert found["results"][b]["accuracy"] == pytest.approx(random_results(0.7).accuracy)
    low, high = found["results"][b]["paired"]["bootstrap"]
    assert 0 < low < found["results"][b]["paired"]["difference"] < high
    main(["compare", a, b, "--markdown"])
    assert "| wave_both hands | " in capsys.readouterr().out
    main(["compare", a, b, "--latex"])
    assert r"wave\_both hands & +" in capsys.readouterr().out


def test_every_way_and_shot_of_a_sweep_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skills = {"a": 0.3, "b": 0.5}
    answers = {
        name: {shot: random_results(skill + 0.1 * shot, seed=shot) for shot in (1, 2)} for name, skill in skills.items()
    }
    for name, found in answers.items():
        rows = [sweep_row(results, shot=shot) for shot, results in found.items()]
        if name == "b":
            rows.append(sweep_row(random_results(0.2), shot=5))  # of which the baseline knows nothing
        write(tmp_path / name, skills[name], sweep=rows)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    main(["compare", a, b, "--json"])
    sweep = json.loads(capsys.readouterr().out)["results"][b]["sweep"]
    for shot in (1, 2):
        difference = answers["b"][shot].accuracy - answers["a"][shot].accuracy
        assert sweep[f"3-way {shot}-shot"]["paired"]["difference"] == pytest.approx(difference)
    assert "paired" not in sweep["3-way 5-shot"]
    main(["compare", a, b, "--markdown"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| 3-way 2-shot"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:3] == [f"{found[2].accuracy:.1%} ± {found[2].ci95:.1%}" for found in answers.values()]
    assert cells[3].startswith("+")


def test_other_videos_are_told_by_their_number_and_by_what_is_missing() -> None:
    whole, part = document(random_results(0.4)), document(random_results(0.6), video_list="sha256:0123456789abcdef")
    part["card"]["data"] |= {"videos": 46, "missing": ["clap/1", "clap/2"], "unreadable": ["bend/3", "bend/4"]}
    with pytest.raises(ValueError, match="video_list") as caught:
        compare_documents({"a": whole, "b": part})
    assert "sha256:1 (50 videos of 5 classes)" in str(caught.value)
    assert "sha256:01234567 (46 videos of 5 classes; missing or unreadable: bend/3, bend/4, clap/1 and 1 more)" in str(
        caught.value
    )


def test_a_model_is_not_compared_with_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = str(write(tmp_path, 0.4))
    for arguments in ([a], [a, a], [a, str(tmp_path)]):
        with pytest.raises(SystemExit):
            main(["compare", *arguments])
    assert "at least two results.json" in capsys.readouterr().err


def test_tables_escape_what_their_formats_mean() -> None:
    assert markdown_table(["a|b"], [["c"]]).splitlines() == [r"| a\|b |", "| :-- |", "| c |"]
    assert r"5\% of \$a\_b\$ $\pm$ \textbackslash{}" in latex_table(["x"], [["5% of $a_b$ ± \\"]])


def _seeds(tmp_path: Path, *, clips: bool = True) -> list[str]:
    """Three seeds of one model and two of another one."""
    paths = []
    for name, skill, seeds in (("otam", 0.4, 3), ("trm", 0.7, 2)):
        for seed in range(seeds):
            found = document(random_results(skill + seed / 100, clips=clips))
            found["card"] |= {"model": {"matching": name}}
            found["card"]["checkpoint"] |= {"training": {"root": "a", "seed": seed}, "seed": seed}
            paths.append(str(save_results(tmp_path / f"{name}-{seed}", found).parent))
    return paths


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = _seeds(tmp_path)
    main(["compare", *paths, "--json"])
    found = json.loads(capsys.readouterr().out)
    otam, trm = f"{tmp_path}/otam (3 seeds)", f"{tmp_path}/trm (2 seeds)"
    assert list(found["results"]) == [otam, trm]
    assert found["baseline"] == otam
    accuracies = [random_results(0.4 + seed / 100).accuracy for seed in range(3)]
    own = found["results"][otam]
    assert own["accuracy"] == pytest.approx(np.mean(accuracies))
    assert own["seeds"] == {"number": 3, "accuracies": accuracies, "std": pytest.approx(np.std(accuracies, ddof=1))}
    paired = found["results"][trm]["paired"]
    assert paired["difference"] == pytest.approx(found["results"][trm]["accuracy"] - np.mean(accuracies))
    main(["compare", *paths])
    text = capsys.readouterr().out
    assert "standard deviation" in text
    assert f"{trm} is better on other" in text


def test_other_options_or_the_same_seed_are_not_one_group(tmp_path: Path) -> None:
    one, other = (document(random_results(skill)) for skill in (0.4, 0.5))
    for found in (one, other):
        found["card"] |= {"model": {"matching": "otam"}}
        found["card"]["checkpoint"] |= {"training": {"root": "a"}, "seed": 0}
    assert list(group_seeds({"a": one, "b": other})) == ["a", "b"]  # the same seed twice: something else differs
    other["card"]["checkpoint"]["seed"] = 1
    assert list(group_seeds({"run-0": one, "run-1": other}).values()) == [["run-0", "run-1"]]
    other["card"]["model"] = {"matching": "trm"}
    assert list(group_seeds({"a": one, "b": other})) == ["a", "b"]
    untrained = [document(random_results(0.4)) for _ in range(2)]
    assert list(group_seeds(dict(zip("ab", untrained, strict=True)))) == ["a", "b"]


def test_a_difference_has_three_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (str(write(tmp_path / name, skill)) for name, skill in (("a", 0.4), ("b", 0.7)))
    main(["compare", a, b, "--json"])
    paired = json.loads(capsys.readouterr().out)["results"][b]["paired"]
    widths = {name: interval["ci95"] for name, interval in paired["intervals"].items()}
    assert widths["episodes"] == pytest.approx(paired["ci95"])
    assert widths["clips"] > widths["episodes"]
    assert widths.keys() == {"episodes", "clips", "classes"}


def test_results_without_clips_are_compared_over_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (save_results(tmp_path / n, document(random_results(s, clips=False))) for n, s in (("a", 0.4), ("b", 0.7)))
    main(["compare", str(a), str(b)])
    text = capsys.readouterr().out
    assert "? not known over clips: the results do not contain the clips of the episodes." in text
    assert f"{b} is better" in text
