"""What axe-core finds on a page."""

import pytest

from ldm_hf.errors import HubError
from ldm_hf.export import vendor

_HOME = vendor.home()  # of the user: what was fetched once is not fetched again
_AXE = (
    "axe-core",
    "4.14.1",
    "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
)


def serious_defects(page) -> list[str]:
    """The defects of a page, open in a browser, that axe-core calls serious or critical: rule and element of each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDM_HOME", str(_HOME))
        try:
            script = vendor.npm_files(*_AXE, {"axe.min.js": "axe.min.js"}) / "axe.min.js"
        except HubError as error:
            pytest.skip(str(error))
    page.add_script_tag(path=script)
    found = page.evaluate("axe.run()")["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {node['html']}" for one in serious for node in one["nodes"]]
