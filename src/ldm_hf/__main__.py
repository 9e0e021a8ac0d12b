"""``python -m ldm_hf`` is the ``ldm`` command."""

from ldm_hf.cli import main

main()
