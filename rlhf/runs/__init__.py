"""A run and its folder on disk: how it starts, its status, files that are whole or not there, and the cache."""
