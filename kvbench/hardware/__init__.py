"""The machine: what it is, what its memory reaches, what a process takes of it, and what other devices would do."""
