"""One line on what limits each row of the tables; by hand, from profiles of the run."""

LIMITS: dict[str, str] = {}
