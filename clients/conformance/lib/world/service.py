"""The service under test, a process group of its own: started, killed by SIGKILL, started again."""

import glob
import os
import signal
import subprocess
import threading
import time


def group_is_alive(group):
    """Whether a process of it still has files open. One that has ended, and that nobody has asked for its status, has none."""
    for path in glob.glob('/proc/[0-9]*/stat'):
        try:
            with open(path, encoding='utf-8', errors='replace') as file:
                state, _, its_group = file.read().rpartition(')')[2].split()[:3]
        except OSError:  # it is gone
            continue
        if int(its_group) == group and state not in 'ZX':
            return True
    return False


class Service:
    def __init__(self, command, environment, log, patience=120):
        self.command, self.environment, self.log = command, environment, log
        self.patience = patience
        self.process = None

    def start(self):
        """Returns when it has said that it listens; nothing, if it does."""
        if self.process is not None and self.process.poll() is None:
            return
        self.process = subprocess.Popen(self.command, env=self.environment, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=self.log, start_new_session=True)
        listening, ended = threading.Event(), threading.Event()
        threading.Thread(target=self._read, args=(self.process.stdout, listening, ended), daemon=True).start()
        listening.wait(self.patience)
        if not listening.is_set() or ended.is_set():
            self.kill()
            raise RuntimeError(f'{self.command} did not say that it listens; see the log')

    def _read(self, output, listening, ended):
        for line in output:
            self.log.write(line)
            self.log.flush()
            if line.strip() == b'listening':
                listening.set()
        ended.set()
        listening.set()

    def kill(self):
        """All of its processes, at once; returns when they are gone."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        while group_is_alive(self.process.pid):  # where it is several processes, the first one may be gone before the others
            time.sleep(0.01)
        self.process = None
