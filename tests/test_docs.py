"""What the documentation shows: commands that the command line understands, and Python with names that there are."""

import ast
import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest
import typer

import ldm_hf
from ldm_hf.cli.main import app

REPOSITORY = Path(__file__).parent.parent
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "model_card.md")),
    *sorted(REPOSITORY.glob("pretrained/*/README.md")),
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


def programs(text: str) -> list[str]:
    """Blocks of Python."""
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


PROGRAMS = sorted(
    (f"{path.relative_to(REPOSITORY).as_posix()}: {number}", program)
    for path in PAGES
    for number, program in enumerate(programs(path.read_text()))
)


def check_names(program: str) -> None:
    """Refuse imports of what there is not, and calls of this package's functions with parameters that they lack."""
    names: dict[str, object] = {"ldm_hf": ldm_hf}
    tree = ast.parse(program)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            names |= {one.asname or one.name: getattr(module, one.name) for one in node.names}
        elif isinstance(node, ast.Import):
            for one in node.names:
                importlib.import_module(one.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ldm_hf":
            assert hasattr(ldm_hf, node.attr), f"ldm_hf.{node.attr}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func).split(".")
        if called[0] not in names or len(called) > 2:
            continue
        function = getattr(names[called[0]], called[1]) if len(called) == 2 else names[called[0]]
        if getattr(function, "__module__", "").startswith("ldm_hf"):
            unknown = object()
            keywords = {one.arg: unknown for one in node.keywords if one.arg}
            inspect.signature(function).bind(*[unknown] * len(node.args), **keywords)


@pytest.mark.parametrize(("place", "program"), PROGRAMS, ids=[place for place, _ in PROGRAMS])
def test_names_of_programs_exist(place, program):
    check_names(program)


@pytest.mark.parametrize(
    "program",
    ["import ldm_hf\nldm_hf.nothing()", "from ldm_hf import nothing", "import ldm_hf\nldm_hf.solve('a', days=1)", "f("],
)
def test_programs_with_wrong_names_are_found(program):
    with pytest.raises((AssertionError, AttributeError, TypeError, SyntaxError)):
        check_names(program)
