"""One loop, four stages."""
