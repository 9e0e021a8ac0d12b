"""The commands that the documentation shows: each is one that the command line understands."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from ldm_hf.cli.main import app

REPOSITORY = Path(__file__).parent.parent
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "model_card.md", "pretrained/ldm-mini/README.md")),
    *sorted((REPOSITORY / "docs").glob("**/*.md")),
]
LEFT_OUT = {"launch"}  # its options are those of `accelerate launch`


def commands(text: str) -> list[str]:
    """Lines of code that begin with ``ldm``, without their comments; lines that are continued are joined."""
    fenced = re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.MULTILINE)
    code = "\n".join([*fenced, *indented]).replace("\\\n", " ")
    return re.findall(r"^ *((?:[A-Z_]+=\S+ )*ldm .*)$", code, re.MULTILINE)


SHOWN = sorted(
    {(path.relative_to(REPOSITORY).as_posix(), line) for path in PAGES for line in commands(path.read_text())}
)


def understand(words: list[str]) -> None:
    """Parse a command without running it; what the command line would refuse is an error."""
    command = typer.main.get_command(app)
    context = command.make_context("ldm", list(words), resilient_parsing=False)
    while hasattr(command, "commands"):
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        if name in LEFT_OUT:
            return
        context = command.make_context(name, list(words), parent=context)


def test_there_are_commands():
    assert len(SHOWN) > 40 and {page for page, _ in SHOWN} >= {"README.md", "docs/evaluation.md", "docs/bank.md"}


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=[f"{page}: {line[:60]}" for page, line in SHOWN])
def test_a_command_of_the_documentation_is_understood(page, line):
    words = shlex.split(line, comments=True)
    words = words[words.index("ldm") + 1 :]
    if words[:1] in (["..."], []) or any(word in ("|", "...", ">") for word in words):
        return
    understand(words)


def test_what_is_wrong_is_found():
    with pytest.raises(Exception, match="No such option"):
        understand(["evaluate", "model", "--out", "x"])
    with pytest.raises(Exception, match=r"valid (number|float)"):
        understand(["build", "--core-minutes", "many", "gymnasium/CartPole-v1"])
