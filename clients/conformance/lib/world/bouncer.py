"""pgbouncer in transaction mode, before the database."""

import os
import shutil
import socket
import subprocess
import time


class Bouncer:
    def __init__(self, directory, port, host, database_port, database):
        program = shutil.which('pgbouncer', path=os.environ['PATH'] + ':/usr/sbin')
        if program is None:
            raise RuntimeError('pgbouncer is not installed')
        with open(f'{directory}/users', 'w', encoding='utf-8') as file:
            file.write('"shop" ""\n')
        with open(f'{directory}/pgbouncer.ini', 'w', encoding='utf-8') as file:
            file.write(f'''
[databases]
{database} = host={host} port={database_port} dbname={database}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {directory}/users
pool_mode = transaction
default_pool_size = 10
ignore_startup_parameters = extra_float_digits
logfile =
''')
        # It refuses to run as root, and takes another user then.
        user = ['-u', os.environ.get('SERVER_USER', 'postgres')] if os.geteuid() == 0 else []
        with open(f'{directory}/pgbouncer.log', 'wb') as log:
            self.process = subprocess.Popen([program, *user, f'{directory}/pgbouncer.ini'], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        self._wait(port)

    def _wait(self, port):
        for _ in range(600):
            try:
                socket.create_connection(('127.0.0.1', port)).close()
                return
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        self.stop()
        raise RuntimeError('pgbouncer did not start; see its log')

    def stop(self):
        self.process.kill()
        self.process.wait()
