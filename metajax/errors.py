"""The one exception for what a user can put right."""


class UserError(Exception):
    """A mistake outside the library: its message is one line with what is wrong, where, and what is right.

    The command line prints the message and exits with 2; no traceback.
    """
