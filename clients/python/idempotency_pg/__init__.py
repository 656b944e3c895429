"""Safe retries for FastAPI, Starlette, Flask and Django on the PostgreSQL extension idempotency."""

from .answer import Answer, Refused  # noqa: F401
from .client import (Id, Result, checkpoint, claim, claim_abandoned, complete, effect_key, extend, fail, hold, kind, lookup,  # noqa: F401
                     once, reason, record_failure, release, replay, run, sqlstate, transaction)
from .http import Core, Route, parse_key  # noqa: F401
from .leased import Attempt, NothingHappened, completer, run_leased  # noqa: F401
