"""The service under test, a process group of its own: started, killed by SIGKILL, started again."""

import os
import signal
import subprocess
import threading


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
        self.process = None
