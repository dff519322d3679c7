"""CapturedModel code is run eagerly while it is recorded, and no longer."""

from __future__ import annotations

import threading

from captum_krypton._capture.eager import eagerly


def test_threads_leave_compiled_code_as_they_found_it() -> None:
    from torch._dynamo import eval_frame

    begun, begin = threading.Barrier(2), threading.Event()

    def record(first: bool) -> None:
        with eagerly:
            begun.wait()
            assert eval_frame._stance.stance == "force_eager"
            if not first:  # the one who came last leaves last
                begin.wait()

    before = eval_frame._stance.stance
    threads = [threading.Thread(target=record, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    threads[0].join()
    assert eval_frame._stance.stance == "force_eager"
    begin.set()
    threads[1].join()
    assert eval_frame._stance.stance == before == "default"
