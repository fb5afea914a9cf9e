"""Parts: small pictures that any pane may use."""
