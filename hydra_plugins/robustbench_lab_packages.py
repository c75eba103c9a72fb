"""Hydra finds choices of other packages where the rest of the program finds them."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class OtherPackages(SearchPathPlugin):
    """Appends their folders behind ours."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        from robustbench_lab.settings.packages import sources

        for folder, whose in sources():
            search_path.append(f"robustbench_lab: {whose}", f"file://{folder}")
