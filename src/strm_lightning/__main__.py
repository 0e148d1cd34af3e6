"""Run the command ``strm`` as ``python -m strm_lightning``."""

from strm_lightning.cli.main import main

main()
