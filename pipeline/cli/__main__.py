"""`python -m pipeline.cli`: as `patchlabel`."""

import sys

from pipeline.cli import main

sys.exit(main())
