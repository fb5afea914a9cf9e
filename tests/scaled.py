"""An intervention that, done twice, is not what it is done once."""

import transpector as tp


class Scaled(tp.Ablate):
    """A site times a number."""

    def __init__(self, site, by):
        super().__init__(site)
        object.__setattr__(self, "by", by)

    def apply(self, whole, source):
        return self._written(whole, whole[(..., *self.site.index)] * self.by)

    def __eq__(self, other):
        return isinstance(other, Scaled) and (self.site, self.by) == (other.site, other.by)

    def __hash__(self):
        return hash((self.site, self.by))
