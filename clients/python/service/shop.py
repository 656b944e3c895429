"""What the conformance services (clients/conformance/spec.md) have in common: the shop itself, without a framework."""

import json
import os
import sys
import uuid
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package as it lies beside this folder

from idempotency_pg import Answer, NothingHappened, Refused, Route  # noqa: E402

PORT = int(os.environ['PORT'])
POOL_SIZE = int(os.environ['POOL_SIZE'])
LEASE = os.environ['LEASE']
NETWORK = os.environ['NETWORK_URL']

INSERT = 'INSERT INTO shop.orders (account, item) VALUES (%s, %s) RETURNING id'
PAY = 'INSERT INTO shop.payments (account, charge, amount) VALUES (%s, %s, %s)'
VISIT = 'INSERT INTO shop.visits (account) VALUES (%s)'
VISITS = 'SELECT count(*) FROM shop.visits WHERE account = %s'
ORDERS = 'SELECT count(*) FROM shop.orders WHERE account = %s'
HEALTHY = "SELECT NOT EXISTS (SELECT FROM idempotency.health() WHERE status = 'critical')"


def account_of(authorization):
    kind, _, name = (authorization or '').partition(' ')
    if kind != 'Bearer' or not name:
        raise Refused(401, {'error': 'no user'})
    return name


def members(body, *names):
    """The whole numbers of a JSON object, or a 422 of the shop."""
    try:
        data = json.loads(body)
        if all(type(data[name]) is int for name in names):
            return data
    except (ValueError, TypeError, KeyError):
        pass
    raise Refused(422, {'error': f'a JSON object with {names} is needed'})


def created(number):
    return Answer(201, {'order': number}, [
        ('Location', f'/orders/{number}'), ('Link', '</a>; rel=a'), ('Link', '</b>; rel=b'), ('Set-Cookie', f'session={uuid.uuid4().hex}'),
        ('X-Request', uuid.uuid4().hex)])


def echo(body, content_type, encoding):
    headers = [('Content-Type', content_type), ('Content-Encoding', encoding)]
    return Answer(201, body, [(name, value) for name, value in headers if value])


def ask(path, data=None, timeout=None):
    with urlopen(Request(NETWORK + path, data), timeout=timeout) as answer:
        return answer.read()


def charge(effect_key, state):
    """The card network's number of the charge."""
    try:
        try:
            ask(f'/before?key={effect_key}')
            order = json.dumps({'key': effect_key, 'amount': state['amount']}).encode()
            answer = ask('/charges', order, float(os.environ['NETWORK_TIMEOUT']))
        except HTTPError as error:
            if error.code == 402:
                raise Refused(402, {'declined': True}) from None
            raise RuntimeError(f'the network answered {error.code}: {error.read().decode(errors="replace")}') from None
        except URLError as error:
            if isinstance(error.reason, ConnectionRefusedError):
                raise NothingHappened('no connection') from None
            raise
    finally:
        try:
            ask(f'/after?key={effect_key}')
        except OSError:
            pass
    return json.loads(answer)['charge']


def routes(work, authorization):
    def state(request, body):
        return {'account': account_of(authorization(request)), 'amount': members(body, 'amount')['amount']}
    return {
        'POST /orders': Route(), 'POST /waiting-orders': Route(wait=os.environ['WAIT']), 'POST /orders/{id}/refunds': Route(),
        'POST /blobs': Route(), 'POST /charges': Route(work=work, state=state, lease=LEASE, step='charge', hold_if_abandoned=False),
    }
