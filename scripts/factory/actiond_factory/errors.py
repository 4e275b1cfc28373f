"""What went wrong, told in one sentence."""


class BadInput(Exception):
    """What is wrong, where, and what to do about it; ends the command with exit code 2 and without a traceback."""


class Failed(Exception):
    """The input is fine and it still didn't work, such as a network that is down: exit code 1, likewise."""
