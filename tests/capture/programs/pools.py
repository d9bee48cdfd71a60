"""Work in child processes of every kind."""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor


def square(number: int) -> int:
    return number * number


def kill_oneself(_: int) -> None:
    os._exit(3)


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(2) as pool:
        print(pool.map(square, range(5)))
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        print(list(executor.map(square, range(5))))
    child = context.Process(target=kill_oneself, args=(0,))
    child.start()
    child.join()
    print(child.exitcode)
