"""Safe retries for FastAPI, Starlette, Flask and Django on the PostgreSQL extension idempotency."""
from .answer import Answer, Refused
from .client import (Id, Result, checkpoint, claim, claim_abandoned, complete, effect_key, extend, fail, hold, kind, lookup,
                     once, reason, record_failure, release, replay, run, sqlstate, transaction)
from .http import Core, Route, parse_key
from .leased import Attempt, NothingHappened, completer, run_leased
