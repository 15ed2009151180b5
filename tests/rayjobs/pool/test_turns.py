import threading

from rayjobs.pool.turns import Turns


def test_who_has_to_go_alone_waits_for_the_others_and_keeps_them_waiting():
    turns, inside, seen = Turns(), [], []

    def go(name, alone, entered, leave):
        with turns.take(alone):
            inside.append(name)
            seen.append(sorted(inside))
            entered.set()
            leave.wait(20)
            inside.remove(name)

    events = {name: (threading.Event(), threading.Event()) for name in "abs"}
    threads = {n: threading.Thread(target=go, args=(n, n == "s", *events[n])) for n in "abs"}
    for name in "ab":
        threads[name].start()
        assert events[name][0].wait(20)
    threads["s"].start()
    assert not events["s"][0].wait(0.2)
    for name in "ab":
        events[name][1].set()
    assert events["s"][0].wait(20)
    late = (threading.Event(), threading.Event())
    thread = threading.Thread(target=go, args=("c", False, *late))
    thread.start()
    assert not late[0].wait(0.2)
    events["s"][1].set()
    assert late[0].wait(20)
    late[1].set()
    for one in (*threads.values(), thread):
        one.join()
    assert seen == [["a"], ["a", "b"], ["s"], ["c"]]
