"""The exception for mistakes that the user can correct."""


class UserError(Exception):
    """A mistake outside the library. The message says what is wrong, where, and what to do.

    The command line prints the message without a traceback, and exits with status 2.
    """
