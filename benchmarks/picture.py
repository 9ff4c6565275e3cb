"""Draw the closing page of a finished `largerec run` as the README's picture.

python benchmarks/picture.py runs/demo docs/demo.svg
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from largerec import show
from largerec.bundle import Bundle
from largerec.engine import load
from largerec.experiments import examples, rows_of, with_compared


def main(run: str, picture: str) -> None:
    results = [Bundle.open(recipe.run.dir).read_json("result.json") for recipe in with_compared(Bundle.open(run).recipe())]
    found = {
        "rows": rows_of(results),
        "examples": examples(load(run), users=1),
        "dir": run,
        "result": results[0],
        "report": f"{run}/report.html",
    }
    console = Console(record=True, width=132, file=io.StringIO(), highlight=False)
    show.run(found, console)
    # The template fetches fonts from elsewhere; a picture in a README should not.
    local = re.sub(r"@font-face \{\{.*?\}\}\s*\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    local = re.sub(r"@font-face \{\{.*?\n    \}\}", "", local, flags=re.DOTALL)
    Path(picture).write_text(console.export_svg(title=f"largerec run {results[0]['name']}", code_format=local), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3])
