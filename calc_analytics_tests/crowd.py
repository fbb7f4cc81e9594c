"""Work that runs in threads during a test."""

import threading
from collections.abc import Callable


class Crowd:
    """Threads that repeat their work until the crowd is dismissed; an error in any of them is raised at the end."""

    def __init__(self, *works: Callable[[], object]) -> None:
        self.over = threading.Event()
        self.errors: list[BaseException] = []
        self.rounds = [0] * len(works)
        self.threads = [threading.Thread(target=self._repeat, args=pair) for pair in enumerate(works)]

    def _repeat(self, number: int, work: Callable[[], object]) -> None:
        try:
            while not self.over.is_set():
                work()
                self.rounds[number] += 1
        except BaseException as error:
            self.errors.append(error)
            self.over.set()

    def __enter__(self) -> "Crowd":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
