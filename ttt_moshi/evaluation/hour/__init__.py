"""An hour of conversation: what a model still knows of it, and whether it keeps talking sense."""
