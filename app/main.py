"""What `panel serve app` runs, once for every browser session."""

from transpector.serve import open_page

open_page().servable()
