"""What all errors that a person can act on have in common: the command line says them in one line."""


class UserError(Exception):
    """Something in the data, the recipe, the run folder or the machine is not as it must be; the message says what."""
