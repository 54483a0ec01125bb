import os
import threading
import time

from magistral_jax.verifier.sandbox.pipes import exchange, is_line


def test_waiting_for_an_answer_costs_no_cpu():
    to_them, to_us = os.pipe(), os.pipe()
    looks = 0

    def left() -> float:
        nonlocal looks
        looks += 1
        return 60.0

    def answer() -> None:
        assert os.read(to_them[0], 100) == b"what?\n"
        time.sleep(0.3)
        os.write(to_us[1], b"th")
        os.write(to_us[1], b"is\n")

    other = threading.Thread(target=answer)
    other.start()
    said = exchange(to_them[1], to_us[0], b"what?\n", is_whole=is_line, left=left, most=100)
    other.join()
    for fd in (*to_them, *to_us):
        os.close(fd)
    assert said == b"this\n"
    assert looks <= 4
