"""The one exception that is printed without a traceback, and what any exception says."""


class LabError(Exception):
    """Something its reader can put right: names the config key or file, what was expected, what came, what to do."""


def said(error: BaseException) -> str:
    """What an error says, after its kind where it is not ours; of one that cannot even say it, its kind."""
    kind = type(error).__name__
    try:
        return str(error) if isinstance(error, LabError) else f"{kind}: {error}"
    except Exception:
        return f"{kind}, whose message cannot be shown"
