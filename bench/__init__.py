"""One script for each figure that the documentation claims; README.md says how to run and read them."""
