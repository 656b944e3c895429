from .answer import Answer as Answer, Refused as Refused
from .client import (
    Id as Id, Result as Result, checkpoint as checkpoint, claim as claim, claim_abandoned as claim_abandoned, complete as complete,
    effect_key as effect_key, extend as extend, fail as fail, hold as hold, kind as kind, lookup as lookup, once as once, reason as reason,
    record_failure as record_failure, release as release, replay as replay, run as run, sqlstate as sqlstate, transaction as transaction)
from .http import Core as Core, Route as Route, parse_key as parse_key
from .leased import Attempt as Attempt, NothingHappened as NothingHappened, completer as completer, run_leased as run_leased
