"""`python -m npnet_runtime.generate`."""

import sys

from npnet_runtime.generate.cli import main

sys.exit(main())
