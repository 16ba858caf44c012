"""The one error a person can cause, and the one that comes of processes that cannot hear each other."""


class SabError(ValueError):
    """Wrong input from a person: one clear sentence that says what to do about it."""


class LostError(SabError):
    """What a process has to say itself, because the one that speaks for all may be gone."""
