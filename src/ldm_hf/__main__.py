"""``python -m ldm_hf`` is the ``ldm`` command."""

from ldm_hf.cli.main import main

main()
