"""Parts: small pictures that any pane may use, and the parts of panes too large for one module."""
