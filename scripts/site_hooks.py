"""Hooks of MkDocs (``mkdocs.yml``): pages that are not in ``docs/``, and links that hold in the repository and on the site.

README, CHANGELOG, CONTRIBUTING, SECURITY and the notebooks become pages; the reference is made from docstrings and from the
commands' ``--help``. Links are written for readers of the repository: on the site, those to other pages are kept, and those
to files that the site does not have become plain text.
"""

import json
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Files of the repository that are pages of the site."""

NOTEBOOKS = {
    f"examples/notebooks/{name}.ipynb": f"tutorials/{name}.md"
    for name in ("first_policy", "dataset_and_finetune", "reproduction_at_scale")
}
"""Notebooks that are pages of the site."""

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    made = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in PAGES.items()}
    made |= {page: notebook_page(ROOT / name) for name, page in NOTEBOOKS.items()}
    made |= {"reference/python.md": python_page(), "reference/errors.md": errors_page(), "reference/cli.md": cli_page()}
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Make links hold on the site."""
    uri = page.file.src_uri
    source = next((name for name, made in (PAGES | NOTEBOOKS).items() if made == uri), f"docs/{uri}")
    known = {file.src_uri for file in files}
    return "".join(
        part if number % 2 else _LINK.sub(lambda found: site_link(found, source, uri, known), part)
        for number, part in enumerate(re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL))
    )


def site_link(found: re.Match[str], source: str, page: str, known: set[str]) -> str:
    """A Markdown link as the site needs it.

    Args:
        found: what ``_LINK`` found.
        source: path of the file that it stands in, in the repository.
        page: the same on the site.
        known: paths of the site's files.
    """
    mark, text, target = found.groups()
    if "://" in target or target.startswith(("#", "mailto:", "data:")):
        return found[0]
    path, hash_sign, anchor = target.partition("#")
    place = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    on_site = (PAGES | NOTEBOOKS).get(place, place.removeprefix("docs/") if place.startswith("docs/") else None)
    if on_site not in known and on_site is not None and f"{on_site}/README.md" in known:
        on_site = f"{on_site}/README.md"
    if on_site in known:
        relative = posixpath.relpath(on_site, posixpath.dirname(page) or ".")
        return f"{mark}[{text}]({relative}{hash_sign}{anchor})"
    if not (ROOT / place).exists():
        return found[0]  # is broken, which the strict build says
    return text if f"`{place}`" in text or text.strip("`") == place else f"{text} (`{place}`)"


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its text, its code, and what that showed."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts += [source] if cell["cell_type"] == "markdown" else [f"```python\n{source}\n```"]
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                parts.append(f"![what the cell shows](data:image/png;base64,{data['image/png'].strip()})")
            elif text := "".join(data.get("text/plain", "")).rstrip():
                parts.append(f"```text\n{text}\n```")
    name = path.relative_to(ROOT).as_posix()
    return "\n\n".join([*parts, f"This page is the notebook `{name}`, run by `scripts/run_notebooks.py`.", ""])


def python_page() -> str:
    """The public names of ``ldm_hf``, each from its docstring."""
    import ldm_hf

    parts = [
        "# Python",
        "",
        "What `import ldm_hf` offers. Everything else is internal, or named in the how-to pages.",
        "",
    ]
    for name in ldm_hf.__all__:
        parts += [f"::: {_module_of(name)}.{name}", ""]
    return "\n".join(parts)


def errors_page() -> str:
    """The classes of ``ldm_hf.errors``."""
    return "# Errors\n\n::: ldm_hf.errors\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"


def cli_page() -> str:
    """The commands with their options, as Typer describes them."""
    command = [
        sys.executable,
        "-m",
        "typer",
        "ldm_hf.cli.main",
        "utils",
        "docs",
        "--name",
        "ldm",
        "--title",
        "Command line",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


def _module_of(name: str) -> str:
    """The module in which a public name is defined."""
    import ldm_hf

    return getattr(ldm_hf, name).__module__
