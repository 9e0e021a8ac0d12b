"""Environment ids: ``<library slug>/<Gymnasium id>``, split at the first ``/``."""

import re
from dataclasses import dataclass

from ldm_hf.errors import UnknownEnvironmentError

_SLUG = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_NAME = re.compile(r"[^\s/]+(?:/[^\s/]+)*")

# In a config name a dash stands for itself only between two other characters, so that "--" can only be a slash.
_ESCAPED = re.compile(r"^\.|[^A-Za-z0-9_./-]|(?<![^/-])-|-(?![^/-])")


@dataclass(frozen=True, order=True)
class EnvironmentId:
    """The id of an environment: which library, and what Gymnasium calls the environment in it.

    Attributes:
        library: slug of the library, lower case: ``"ale-py"``.
        name: the id that Gymnasium registers, with its namespace and version: ``"ALE/Pong-v5"``.
    """

    library: str
    name: str

    def __post_init__(self) -> None:
        if not _SLUG.fullmatch(self.library) or not _NAME.fullmatch(self.name) or not self.name.isprintable():
            raise UnknownEnvironmentError(
                f"{str(self)!r} is not an environment id: it should be <library>/<Gymnasium id>, "
                "for example gymnasium/CartPole-v1"
            )

    @classmethod
    def parse(cls, text: str) -> "EnvironmentId":
        """Read an id; ``str`` writes it back unchanged.

        Raises:
            UnknownEnvironmentError: the text has no library part, or a character that no id can hold.
        """
        library, slash, name = text.partition("/")
        return cls(library, name) if slash else cls("", library)

    def __str__(self) -> str:
        return f"{self.library}/{self.name}" if self.library else self.name

    @property
    def config_name(self) -> str:
        """The name as a dataset config or file name: ``ALE--Pong-v5``. Different names give different config names.

        A slash becomes ``--``; a character that a path or a dataset config cannot hold becomes ``~`` and its code in
        hexadecimal, byte by byte in UTF-8.
        """
        escaped = _ESCAPED.sub(lambda match: "".join(f"~{byte:02X}" for byte in match[0].encode()), self.name)
        return escaped.replace("/", "--")
