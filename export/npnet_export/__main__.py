"""`python -m npnet_export` is `npnet-export`."""

import sys

from npnet_export.cli import main

sys.exit(main())
