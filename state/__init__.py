"""State: the model and the question, without a page."""
