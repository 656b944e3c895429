"""Ports that stay ours while nothing listens on them.

Below the range from which the system takes ports for outgoing connections: such a port would be gone when the service
is started again.
"""

import random
import socket


def free_port():
    for port in random.SystemRandom().sample(range(20000, 30000), 500):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(('127.0.0.1', port))
            except OSError:
                continue
            return port
    raise OSError('found no free port')
