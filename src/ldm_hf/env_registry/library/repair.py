"""Why an environment or a library fails, and what mends it: by what the failure says."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ldm_hf.env_registry.library.manifest import Manifest

MOST_REPAIRS = 3
"""How many repairs of one library are tried, one after another."""

_HEADLESS = {
    "MUJOCO_GL": "egl",
    "PYOPENGL_PLATFORM": "egl",
    "PYGLET_HEADLESS": "True",
    "SDL_VIDEODRIVER": "dummy",
    "SDL_AUDIODRIVER": "dummy",
}
_SAME_NAME = (
    "gym gymnasium imageio matplotlib mujoco networkx numba packaging pandas pybullet pygame pytz requests scipy "
    "seaborn six torch tqdm"
)
PACKAGES = {
    "PIL": "pillow",
    "ale_py": "ale-py",
    "cv2": "opencv-python-headless",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    **{name: name for name in _SAME_NAME.split()},
}
"""Packages of modules that are often forgotten. Others are only named: anybody may own a module's name on an index."""


@dataclass(frozen=True)
class Diagnosis:
    """What a failure comes from.

    Attributes:
        cause: in a few words.
        advice: what to add to the command, or to do, in a line.
        repaired: the manifest that should not fail so; None where nothing can be done by itself.
    """

    cause: str
    advice: str
    repaired: Manifest | None = None


Rule = Callable[[re.Match[str], Manifest], Diagnosis]


def diagnose_failure(reason: str, manifest: Manifest) -> Diagnosis | None:
    """The diagnosis of a failure of a library's installation, or of one of its environments; None of an unknown one."""
    for pattern, rule in _RULES:
        if match := re.search(pattern, reason):
            return rule(match, manifest)
    return None


def diagnose_failures(reasons: Sequence[str], manifest: Manifest) -> Diagnosis | None:
    """The diagnosis that most failures share; None where most are unknown."""
    found = [diagnose_failure(reason, manifest) for reason in reasons]
    counts = Counter(None if one is None else one.cause for one in found)
    cause = counts.most_common(1)[0][0] if counts else None
    return next((one for one in found if one is not None and one.cause == cause), None)


def diagnose_none(registers: Sequence[str], manifest: Manifest) -> Diagnosis | None:
    """The diagnosis of a library whose import registers nothing; ``registers`` are its functions that may do it."""
    if not registers or manifest.register:
        return None
    repaired = replace(manifest, register=tuple(registers[:1]))
    return Diagnosis("its import registers nothing", f"call its function by --register {registers[0]}", repaired)


def _with_requirement(cause: str, requirement: str, manifest: Manifest) -> Diagnosis:
    name = re.match(r"[\w.-]+", requirement)
    has = any(re.match(rf"{re.escape(name[0])}\b", one) for one in manifest.requirements[1:]) if name else False
    repaired = None if has else replace(manifest, requirements=(*manifest.requirements, requirement), lock=())
    return Diagnosis(cause, f"add {requirement!r} to what is installed", repaired)


def _module(match: re.Match[str], manifest: Manifest) -> Diagnosis:
    module = match[1].partition(".")[0]
    if module == "pkg_resources":
        return _with_requirement("it needs pkg_resources, which newer setuptools lack", "setuptools<81", manifest)
    if module == "distutils":
        return _with_requirement("it needs distutils, which Python 3.12 lacks", "setuptools<81", manifest)
    cause = f"it needs the module {module}, and does not require it"
    if module in PACKAGES:
        return _with_requirement(cause, PACKAGES[module], manifest)
    return Diagnosis(cause, f"add the package that has {module} to what is installed")


def _extra(match: re.Match[str], manifest: Manifest) -> Diagnosis:
    own = [re.split(r"[^\w.-]", one)[0].lower() for one in (*manifest.requirements, "gymnasium", "gym")]
    diagnosis = _with_requirement(f"it needs the optional extra {match[1]}", match[1], manifest)
    return diagnosis if match[1].partition("[")[0].lower() in own else replace(diagnosis, repaired=None)


def _numpy(match: re.Match[str], manifest: Manifest) -> Diagnosis:
    return _with_requirement("it was written for numpy 1", "numpy<2", manifest)


def _old_steps(match: re.Match[str], manifest: Manifest) -> Diagnosis:
    return _with_requirement("its steps give four values, as before Gym 0.26", "gym<0.26", manifest)


def _old_random_numbers(match: re.Match[str], manifest: Manifest) -> Diagnosis:
    return _with_requirement("it draws random numbers as before Gym 0.26", "gym<0.26", manifest)


def _old_python(match: re.Match[str], manifest: Manifest) -> Diagnosis:
    return Diagnosis("it, or what it requires, was written for Python 3.9 or older", "ask for that: --python 3.9")


def _display(match: re.Match[str], manifest: Manifest) -> Diagnosis:
    missing = {key: value for key, value in _HEADLESS.items() if key not in manifest.environment}
    repaired = replace(manifest, environment={**manifest.environment, **missing}) if missing else None
    return Diagnosis("it draws, and there is no screen", "set MUJOCO_GL=egl and the like by --environment", repaired)


def _six_values(match: re.Match[str], manifest: Manifest) -> Diagnosis:
    return Diagnosis(
        "its steps give six values, which Gymnasium's own wrappers refuse",
        "add those of its ids that step as Gymnasium does (--only PATTERN), or its class: --entry-point NAME=module:Class",
    )


def _compiled(match: re.Match[str], manifest: Manifest) -> Diagnosis:
    return Diagnosis(
        f"{match[1]} {match[2]}, which it requires, has to be compiled, and that fails",
        f"ask for one that needs no compiling: add '{match[1]}>{match[2]}' to what is installed",
    )


def _shared_library(match: re.Match[str], manifest: Manifest) -> Diagnosis:
    return Diagnosis(
        f"the system lacks {match[1]}", f"install the Debian package of {match[1]}, or name it by --system-package"
    )


def _arguments(match: re.Match[str], manifest: Manifest) -> Diagnosis:
    names = re.findall(r"'(\w+)'", match[1].partition(" was raised from")[0])  # Gymnasium adds the arguments it has
    example = ", ".join(f'"{name}": ...' for name in names)
    return Diagnosis("it requires arguments", f"give them: --kwargs '{{{example}}}'")


def _slow(match: re.Match[str], manifest: Manifest) -> Diagnosis:
    return Diagnosis("it is slow", "give it more time: --timeout 1800")


def _no_download(match: re.Match[str], manifest: Manifest) -> Diagnosis:
    return Diagnosis(
        "it downloads what it needs, and that cannot be reached from here",
        "add it where the network reaches that, or bring the files by hand: its documentation says which",
    )


def _no_file(match: re.Match[str], manifest: Manifest) -> Diagnosis:
    return Diagnosis(
        "a file is not there", "data or a program that the package does not bring: its documentation says what to get"
    )


_LACKING = r"missing \d+ required (?:positional|keyword-only) arguments?: (.*)"


def lacks_arguments(reason: str) -> bool:
    """Whether an environment failed because its constructor was not given what it requires."""
    return re.search(_LACKING, reason) is not None


_RULES: list[tuple[str, Rule]] = [
    (_LACKING, _arguments),
    (
        r"`np\.\w+` was removed|module 'numpy' has no attribute '\w+'|numpy\.dtype size changed|compiled using NumPy 1"
        r"|only 0-dimensional arrays can be converted to Python scalars",  # float(np.ones(1)): a warning until NumPy 2.4
        _numpy,
    ),
    (r"not enough values to unpack \(expected 5, got 4\)", _old_steps),
    (r"Generator' object has no attribute '(?:rand|randn|randint|random_sample)'", _old_random_numbers),
    (r"cannot import name '\w+' from 'collections'|module 'collections' has no attribute", _old_python),
    (r"too many values to unpack \(expected 5\)", _six_values),
    (r"`([\w.-]+)` \(v([\w.]+)\) was included because", _compiled),
    (r"pip install [\"'`]?([\w.-]+\[[\w,.-]+\])", _extra),
    (r"No module named '([\w.]+)'", _module),
    (
        r"(?:GLEW|EGL|OpenGL|GLX|DISPLAY|NoSuchDisplay|video device|No available video|cannot connect to (?:X|display))",
        _display,
    ),
    (r"(lib[\w+.-]+\.so[\w.]*): cannot open shared object", _shared_library),
    (r"took \d+ of \d+ random steps in the time allowed|gave no answer within", _slow),
    (r"URLError|ConnectionError|Max retries exceeded|Name or service not known|LocalEntryNotFoundError", _no_download),
    (r"FileNotFoundError|FileDoesNotExist|No such file or directory", _no_file),
]
