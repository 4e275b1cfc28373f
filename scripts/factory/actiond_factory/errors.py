"""What a user did wrong, told in one sentence."""


class BadInput(Exception):
    """What is wrong, where, and what to do about it; ends the command with exit code 2 and without a traceback."""
