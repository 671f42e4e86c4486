"""Adaptation: what is learned on top of frozen weights, on the user's own image or on openly licensed ones."""
