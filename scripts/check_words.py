#!/usr/bin/env python
"""Refuse words that this project does not use, with what it says instead: part of ``make lint``.

The field's terms, and plain technical English: see the glossary in docs/glossary.md.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKED = ("src", "tests", "benchmarks", "scripts", "docs", "examples", "recipes", "README.md", "CONTRIBUTING.md")
SUFFIXES = {".py", ".md", ".toml", ".yaml", ".sh", ".html", ""}
LEFT_OUT = ("docs/results/", "docs/catalogue.md", "scripts/check_words.py")
ALLOWED = {"SmallPictureExtractor"}  # what files of earlier versions hold

WORDS = {
    r"[Pp]ictures?": "image",
    r"[Mm]isfit\w*": "incompatible, incompatibility",
    r"[Tt]roubles?|[Dd]oubts?": "warning",
    r"(?:goes|go|going|went) on": "continues, resumes",
    r"anew": "again",
    r"for ever": "forever",
    r"(?<!there )is no (?:file|folder|JSON|number|manifest|report|image|policy|model|zip|pickle)": "is not a",
    r"(?:one|a) (?:row|file|column|folder|token|process) an? (?:row|run|file|environment|step|transition|episode)": "per",
}
PATTERN = re.compile(
    "|".join(rf"(?P<w{index}>(?<![A-Za-z])(?:{word})(?![A-Za-z]))" for index, word in enumerate(WORDS))
)


def main() -> None:
    """Print each use with what to say instead; exit status 1 if there is one."""
    listed = subprocess.run(["git", "ls-files", "--", *CHECKED], cwd=ROOT, capture_output=True, text=True, check=True)
    found = 0
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if name.startswith(LEFT_OUT) or path.suffix not in SUFFIXES or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for match in PATTERN.finditer(re.sub("|".join(ALLOWED), "", line)):
                instead = list(WORDS.values())[int(str(match.lastgroup)[1:])]
                print(f"{name}:{number}: {match[0]!r}; say: {instead}")
                found += 1
    sys.exit(found > 0)


if __name__ == "__main__":
    main()
