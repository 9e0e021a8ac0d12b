"""What is installed beside a worker: versions, and what packages say of themselves.

It is asked inside, because the files that say it are the installed packages' own. Python 3.7's standard library alone must
run this file.
"""

import os
import subprocess
import sys
import sysconfig
from email.parser import HeaderParser


def frozen():
    """Lines of ``pip freeze``: every package with its version or origin."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "freeze", "--all"]
    listed = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=sys.prefix)
    if listed.returncode:
        raise RuntimeError("pip freeze failed: " + listed.stderr.decode("utf-8", "replace")[-500:])
    return listed.stdout.decode("utf-8", "replace").splitlines()


def distributions():
    """What the metadata of each package say: name, version, headers, and the modules that it installed."""
    found = []
    for folder in sorted({sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")}):
        for name in sorted(os.listdir(folder)):
            headers = {"dist-info": "METADATA", "egg-info": "PKG-INFO"}.get(name.rpartition(".")[2])
            text = _read(os.path.join(folder, name, headers)) if headers else ""
            if text:
                metadata = HeaderParser().parsestr(text)
                found.append(
                    {
                        "name": str(metadata["Name"] or ""),
                        "version": str(metadata["Version"] or ""),
                        "headers": [[key, str(value)] for key, value in metadata.items()],
                        "modules": _modules(folder, name),
                    }
                )
    return found


def _modules(folder, name):
    """Top-level modules of a package, among what lies in a folder of packages."""
    listed = _read(os.path.join(folder, name, "top_level.txt")).split()
    if not listed:
        files = [line.partition(",")[0] for line in _read(os.path.join(folder, name, "RECORD")).splitlines()]
        listed = [file.split("/")[0] for file in files if file.endswith(".py")]
    there = os.listdir(folder)
    modules = [module[: -len(".py")] if module.endswith(".py") else module for module in dict.fromkeys(listed)]
    return [one for one in modules if one.isidentifier() and any(entry.startswith(one) for entry in there)]


def _read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
