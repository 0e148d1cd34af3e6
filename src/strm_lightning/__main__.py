"""``python -m strm_lightning`` is the command ``strm``."""

from strm_lightning.cli.main import main

main()
