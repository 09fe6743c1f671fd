"""Methods compared at equal budgets: runs what a study lacks, then writes its page.

A study is a file: rows (a recipe or a baseline of scripts/baselines, with settings), seeds, a
budget in generated tokens, learner tokens or seconds, and the row that all others are tested
against. Runs that exist are read, not repeated; a study that was killed goes on with the same
command.

    python scripts/compare.py scripts/study/methods.yaml
    python scripts/compare.py scripts/study/methods.yaml --page-only    # of what is finished
    python scripts/compare.py scripts/study/tokens.yaml    # tokens against reinforcement
"""

from __future__ import annotations

import argparse
from pathlib import Path

from study.execute import chosen_rates, execute
from study.page import write_page
from study.picture import draw_pictures
from study.plan import open_study

from opd.errors import OpdError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("--page-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    try:
        study = open_study(options.study)
        rates = chosen_rates(study) if options.page_only else execute(study)
        page = write_page(study, rates, options.study)
        draw_pictures(page.parent)
        print(page)
    except OpdError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
