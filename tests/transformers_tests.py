"""transformers' own tests of a model and of a configuration, from the source distribution of the release that is installed.

They are downloaded once per release and environment, through the index that pip is configured with, and are never committed.
"""

import importlib
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path

import transformers

from ldm_hf.utils.files import replacing

_FOLDER = Path(sys.prefix) / "transformers-tests" / transformers.__version__

# What these modules import of parts of the test suite that the source distribution leaves out.
_ABSENT = {
    "tests.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "tests.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "tests.utils.test_configuration_utils": {"config_common_kwargs": {}},
}


def load() -> tuple[type, type]:
    """``ModelTesterMixin`` and ``ConfigTester`` of the installed transformers."""
    if not _FOLDER.is_dir():
        _download()
    if str(_FOLDER) not in sys.path:
        sys.path.insert(0, str(_FOLDER))
    for name, contents in _ABSENT.items():
        package, _, _ = name.rpartition(".")
        for made in (package, name):
            module = sys.modules.setdefault(made, types.ModuleType(made))
            module.__path__ = []
        vars(sys.modules[name]).update(contents)
    modeling = importlib.import_module("tests.test_modeling_common")
    configuration = importlib.import_module("tests.test_configuration_common")
    return modeling.ModelTesterMixin, configuration.ConfigTester


def _download() -> None:
    wanted = f"transformers=={transformers.__version__}"
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*command, "--dest", temporary, wanted], check=True, timeout=300)
        (archive,) = Path(temporary).glob("transformers-*.tar.gz")
        with tarfile.open(archive) as opened, replacing(_FOLDER) as folder:
            members = [each for each in opened.getmembers() if Path(each.name).match("transformers-*/tests/*.py")]
            for member in members:
                member.name = f"tests/{Path(member.name).name}"
            opened.extractall(folder, members, filter="data")
            (folder / "tests/__init__.py").touch()  # left out as well
