"""``python -m bench`` is ``dcpbench``."""

import sys

from bench.cli import main

sys.exit(main())
