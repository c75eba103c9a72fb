"""The words of every cell of every table, read once."""

import pytest

from robustbench_lab.tables.profiles import PROFILES
from robustbench_lab.tables.reading import chosen_tables


@pytest.fixture(scope="session")
def words_of_cells() -> dict[str, list[tuple[str, ...]]]:
    """By profile, in the order of the tables; words that several cells have stand there once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ROBUSTBENCH_LAB_TABLES", raising=False)
        tables = {profile: chosen_tables([], profile) for profile in PROFILES}
    return {
        profile: list(dict.fromkeys(tuple(words) for table in tables[profile] for _, _, words in table.words())) for profile in PROFILES
    }
