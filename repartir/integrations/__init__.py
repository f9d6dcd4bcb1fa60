"""Other libraries on this one's workers: a file for each, imported only when used."""
