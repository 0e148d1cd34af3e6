"""What a start of the package does not import: a help text should not wait for libraries that it does not use."""

import subprocess
import sys
from pathlib import Path

import pytest

SLOW = {"torch", "lightning", "torchmetrics", "torchvision", "timm", "wandb", "matplotlib", "av", "huggingface_hub"}
MODELS = SLOW - {"torch", "av", "huggingface_hub"}
COMMAND = "import sys; from strm_lightning.cli.main import main; sys.argv = ['strm', *{}]; main()"


def imported(code: str) -> set[str]:
    """Names of the modules that a new process has imported after the code, or at its exit."""
    code = f"import atexit, sys; atexit.register(lambda: print('imported:', *sys.modules))\n{code}"
    environment = {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("imported: ")[2].split())


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["recipes"], ["compare", "--help"], ["plot", "--help"]]
)
def test_commands_that_import_no_slow_library(arguments: list[str]) -> None:
    found = imported(COMMAND.format(arguments))
    assert "strm_lightning.cli.main" in found
    assert not SLOW & found


def test_importing_the_package_imports_no_slow_library() -> None:
    assert not SLOW & imported("import strm_lightning")


@pytest.mark.parametrize("command", ["classify", "support", "export", "demo", "prepare", "doctor"])
def test_help_imports_no_library_of_models(command: str) -> None:
    assert not MODELS & imported(COMMAND.format([command, "--help"]))


@pytest.mark.parametrize("name", ["STRM", "FewShotClassifier"])
def test_models_import_timm_when_a_backbone_is_built(name: str) -> None:
    assert not MODELS & imported(f"from strm_lightning import {name}")


@pytest.mark.parametrize("code", ["from strm_lightning import STRMModule", COMMAND.format(["fit", "--help"])])
def test_training_imports_no_timm_and_wandb_before_a_model_is_built(code: str) -> None:
    found = imported(code)
    assert "lightning" in found
    assert not {"timm", "wandb"} & found
