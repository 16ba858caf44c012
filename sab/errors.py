"""The one error a person can cause."""


class SabError(ValueError):
    """Wrong input from a person: one clear sentence that says what to do about it."""
