"""The one exception that is printed without a traceback."""


class LabError(Exception):
    """Something its reader can put right: names the config key or file, what was expected, what came, what to do."""
