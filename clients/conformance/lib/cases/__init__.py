"""The cases, by subject. Importing a module registers its cases, in this order."""

from lib.cases import keys, replay, answers, bodies, database, pool, charges  # noqa: F401
