"""The stages of a split."""

from typing import Literal, get_args

Stage = Literal["train", "val", "test"]
STAGES: tuple[Stage, ...] = get_args(Stage)
