"""The benchmark of matching methods at toy size: both ways of OTAM agree, and every method is timed."""

import pytest

from experiments.benchmarks import matching
from strm_lightning.models.matching.alignment import OPTIONS


def test_runs_at_toy_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(matching, "D", 6)
    monkeypatch.setattr(matching.torch, "set_num_threads", lambda _: None)
    matching.main(["--rounds", "1", "--episodes", "4", "--batch", "2"])
    printed = capsys.readouterr().out
    assert printed.count("x faster") == 4  # two sizes, with and without backward; compare_otam checks equality
    for name in (*OPTIONS, "ridge", "lag"):
        assert printed.count(f"-shot  {name} ") == 2, name
