"""Whose data: one file a public layout, from its files to records."""
