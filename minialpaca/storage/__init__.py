"""A run folder's files: whole or not there, verified, one process's alone, and room asked for first."""
