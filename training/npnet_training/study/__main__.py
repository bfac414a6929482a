"""`python -m npnet_training.study`."""

from __future__ import annotations

import sys

from npnet_training.command import run
from npnet_training.study.report import table, write_report
from npnet_training.study.run import study
from npnet_training.study.settings import StudySettings

EPILOG = """example, a row of the study:
  python -m npnet_training.study --networks networks --output study --conditions "guidance 3"
"""


def main(argv: list[str] | None = None) -> int:
    """Run the study and return its exit status."""
    return run(StudySettings, "python -m npnet_training.study", EPILOG, argv, _work)


def _work(settings: StudySettings) -> int:
    document = study(settings)
    write_report(document, settings.output)
    print(table(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
