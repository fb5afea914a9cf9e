"""What can go wrong that the user can mend, and what merely stopped."""


class TranspectorError(Exception):
    """Something the user can mend; the message says what is wrong, the value, and the remedy."""


class ModelError(TranspectorError):
    """A model that can't be found, read, or run here."""


class TextError(TranspectorError):
    """A text that this model can't read as it stands."""


class SiteError(TranspectorError):
    """An address that names nothing in this model or run, or that it can't read or write."""


class InterventionError(TranspectorError):
    """An intervention that can't be applied as asked: shapes, order or source don't fit."""


class Cancelled(Exception):
    """A run or a load that was stopped because nobody waits for it any more."""
