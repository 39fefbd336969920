"""The backends, what they have in common, and how one is selected. Importing this package imports none of them."""
