"""The page of all libraries that the package ships, made from their manifests and validation reports."""

import re
from collections import Counter

from ldm_hf.env_registry.library.manifest import Manifest, library_folders, read_manifest
from ldm_hf.env_registry.library.report import EnvironmentReport, Report, read_report
from ldm_hf.env_registry.worker.space_tree import leaves

_HEAD = """# Catalogue of environments

Every library below was added by `ldm env add`: installed by itself, each of its environments made, reset and stepped 1,000
times at random in a process of its own. `ldm env catalogue docs/catalogue.md` writes this page from the manifests and
reports in `src/ldm_hf/env_registry/library/manifests/`.

"fits" counts the environments that fit a model of the paper's limits (128 observation slots, 28 action slots, one image);
"seeded" those where the same seed and actions gave the same observations and rewards twice.
"""


def catalogue_page() -> str:
    """The page as Markdown."""
    folder = library_folders()[0]
    libraries = []
    for path in sorted(folder.glob("*.toml")):
        if path.with_suffix(".json").exists():
            libraries.append((read_manifest(path), read_report(path.with_suffix(".json"))))
    validated = sum(len(report.validated) for _, report in libraries)
    fits = sum(not one.problems for _, report in libraries for one in report.validated)
    lines = [
        _HEAD,
        f"**{len(libraries)} libraries, {validated} validated environments, {fits} of which fit.**\n",
        "| library | version | Python | environments | fits | seeded | observations | actions | API | licence | failed |",
        "|---|---|---|---:|---:|---:|---|---|---|---|---:|",
        *(_row(manifest, report) for manifest, report in libraries),
        "\n## What failed\n",
    ]
    for manifest, report in libraries:
        failed = [one for one in report.environments.values() if one.failure]
        if failed:
            lines.append(f"**{manifest.slug}**\n")
            reasons: dict[str, list[str]] = {}
            for one in failed:
                reasons.setdefault(_reason(manifest, one), []).append(f"`{one.name}`")
            for reason, names in reasons.items():
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                lines.append(f"- {', '.join(names[:3])}{more}: {reason}")
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def observation_kinds(report: EnvironmentReport) -> list[str]:
    """What an observation is made of: image, continuous, discrete, text, sequence, graph."""
    return [_kind(leaf) for _, leaf in leaves(report.observation_space)]


def action_kind(report: EnvironmentReport) -> str:
    """What an action is: the name of its space, in words."""
    kind = report.action_space["type"]
    return {"Box": "continuous", "MultiDiscrete": "multi-discrete", "MultiBinary": "multi-binary"}.get(
        kind, kind.lower()
    )


def _row(manifest: Manifest, report: Report) -> str:
    good = report.validated
    observations = Counter(" + ".join(sorted(set(observation_kinds(one)))) for one in good)
    actions = Counter(action_kind(one) for one in good)
    interfaces = sorted({one.registry or "class" for one in good})
    name = f"[{manifest.slug}]({manifest.homepage})" if manifest.homepage.startswith("http") else manifest.slug
    cells = [
        name,
        report.version,
        manifest.python,
        len(good),
        sum(not one.problems for one in good),
        sum(one.deterministic for one in good),
        _counts(observations),
        _counts(actions),
        ", ".join(interfaces),
        manifest.licence,
        len(report.environments) - len(good),
    ]
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" if len(counter) > 1 else name for name, count in counter.most_common())


def _kind(leaf: dict[str, object]) -> str:
    if leaf["type"] != "Box":
        return {"MultiDiscrete": "discrete", "MultiBinary": "discrete"}.get(
            str(leaf["type"]), str(leaf["type"]).lower()
        )
    shape = leaf["shape"]
    assert isinstance(shape, list)
    if leaf["dtype"] == "uint8" and len(shape) in (2, 3) and min(shape[:2]) >= 5:
        return "image"
    return "discrete" if leaf["dtype"] == "bool" else "continuous"


def _reason(manifest: Manifest, report: EnvironmentReport) -> str:
    reason = (
        (report.failure or "").replace(f"{manifest.slug}/{report.name}", "").replace(report.name, "it").lstrip(": ")
    )
    reason = re.sub(r"/[^\s'\"]*/(site-packages|lib|tmp)/", "…/", reason)
    return reason[:220] + ("…" if len(reason) > 220 else "")
