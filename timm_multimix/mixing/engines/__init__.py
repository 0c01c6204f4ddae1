"""The same loss, computed in different ways."""
