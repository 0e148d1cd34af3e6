"""Results of processes that Lightning starts are found in the process that started them."""

import copy
import os
import subprocess
import sys
from pathlib import Path

from strm_lightning.evaluation.handover import Handover

RUN = """
import json, sys
from pathlib import Path
from tests.test_module import data, module, trainer

root, folder = Path(sys.argv[1]), Path(sys.argv[2])
one = module()
trainer(folder).test(one, datamodule=data(root), verbose=False)
for strategy in ("ddp_fork", "ddp_notebook"):
    model = module()
    options = {"devices": 2, "strategy": strategy, "max_epochs": 1, "enable_checkpointing": False}
    trainer(folder, **options).test(model, datamodule=data(root), verbose=False)
    assert (model.results.predicted == one.results.predicted).all()
    assert (model.results.index == one.results.index).all()
    written = json.loads(json.dumps(one.report))  # as results.json has it: tuples are lists
    assert {**model.report, "timing": None} == {**written, "timing": None}
    assert model.report["timing"]["processes"] == 2
model = module()
trainer(folder, **options).fit(model, datamodule=data(root))
assert len(model.results.index) == 7, model.results
assert model.report is None
"""


def test_results_come_back_from_child_processes(actions: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join(["src", "."])
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(actions), str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list((tmp_path / "tmp").glob("strm-results-*"))


def test_a_copy_has_a_file_of_its_own() -> None:
    mine = Handover()
    assert copy.deepcopy(mine).path != mine.path
