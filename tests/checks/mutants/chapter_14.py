"""Wrong answers to the exercises of chapter 14, each with what its learner must be told."""

from textwrap import dedent


def stream(
    goes_on: str = "not sequence.finished or sent < sequence.num_new_tokens",
    is_there: str = "sent < sequence.num_new_tokens",
    token: str = "sequence.new_token_ids[sent]",
    start: str = "0",
    step: str = "engine.step()",
) -> str:
    return dedent(f"""
        def stream_tokens(engine, sequence):
            sent = {start}
            while {goes_on}:
                if {is_there}:
                    yield {token}
                    sent += 1
                else:
                    {step}
    """)


def after_each_step(token: str = "sequence.token_ids[-1]", goes_on: str = "while not sequence.finished") -> str:
    return dedent(f"""
        def stream_tokens(engine, sequence):
            {goes_on}:
                engine.step()
                yield {token}
    """)


def stop(
    find: str = "text.find(stop)",
    hold: str = "max(n for n in range(len(stop)) if text.endswith(stop[:n]))",
    complete: str = "stop in text",
    text: str = "held + piece",
    rest: str = "yield held",
    out: str = "return",
) -> str:
    return dedent(f"""
        import re

        def until_stop(pieces, stop):
            held = ""
            for piece in pieces:
                text = {text}
                if {complete}:
                    yield text[: {find}]
                    {out}
                keep = {hold}
                yield text[: len(text) - keep]
                held = text[len(text) - keep :]
            {rest}
    """)


def room(
    needed: str = "sum(blocks_for(len(s.token_ids), pool.block_size) - len(s.block_table) for s in running)",
    compare: str = ">",
    free: str = "pool.num_free",
    who: str = "running.pop()",
    loop: str = "while",
    release: str = "release_all(pool, one.block_table)",
    forget: str = "one.num_cached = 0",
    wait: str = "waiting.insert(0, one)",
    first: str = "pass",
) -> str:
    return dedent(f"""
        from llama3_edu.cache.blocks import blocks_for, release_all

        def make_room(pool, running, waiting):
            {first}
            {loop} {needed} {compare} {free}:
                one = {who}
                {release}
                {forget}
                {wait}
    """)


MUTANTS = {
    "stream_tokens": {
        "all at the end": (
            "def stream_tokens(engine, sequence):\n    engine.run()\n    yield from sequence.new_token_ids",
            "A reader wants each token as soon as it is there",
        ),
        "a list": (
            "def stream_tokens(engine, sequence):\n    engine.run()\n    return sequence.new_token_ids",
            "list came, wanted is a generator",
        ),
        "the prompt too": (stream(token="sequence.token_ids[sent]"), "a token of the prompt"),
        "the newest after each step": (after_each_step(), "before anybody streamed it"),
        "the newest of the new after each step": (
            after_each_step("sequence.new_token_ids[-1] if sequence.new_token_ids else 0", "while sequence.num_new_tokens < 9"),
            "It ends in more ways than one",
        ),
        "the newest, where there is one": (
            stream(token="sequence.token_ids[-1]"),
            "One was left out",
        ),
        "without the last": (stream(goes_on="not sequence.finished"), "The last token comes with the step"),
        "only what comes from now on": (stream(start="sequence.num_new_tokens"), "before anybody streamed it"),
        "by number": (stream(goes_on="sent < sequence.max_new_tokens"), "It ends in more ways than one"),
        "one step, one token": (
            stream(step="engine.step()\n                    if not sequence.num_new_tokens:\n                        return"),
            "A step may bring this request no token",
        ),
        "a token per step, come what may": (
            dedent("""
                def stream_tokens(engine, sequence):
                    for token in sequence.new_token_ids:
                        yield token
                    while not sequence.finished:
                        engine.step()
                        yield sequence.token_ids[-1]
            """),
            "a token of the prompt",
        ),
        "all of them after each step": (
            after_each_step("[0]").replace("yield [0]", "yield from sequence.new_token_ids"),
            "sent before",
        ),
        "in words": (stream(token="str(sequence.new_token_ids[sent])"), "Count what you have sent"),
        "from the package": (
            "def stream_tokens(engine, sequence):\n    yield from engine.stream(sequence)",
            "That is what you are to write",
        ),
    },
    "until_stop": {
        "each piece for itself": (stop(hold="0", rest="pass"), "It may begin in one piece"),
        "no look": (stop(complete="False", hold="0"), "Look for the stop string before you send"),
        "with the stop string": (stop(find="text.find(stop) + len(stop)"), "Look for the stop string before you send"),
        "loses what waits": (stop(rest="pass"), "is text after all"),
        "holds back too little": (stop(hold="int(text.endswith(stop[0]) and len(stop) > 1)"), "begin again inside a false alarm"),
        "holds back everything": (stop(hold="len(text)"), "a reader wants the rest now"),
        "holds back a fixed number": (stop(hold="len(stop) - 1"), "a reader wants the rest now"),
        "forgets a false alarm": (
            stop(text="piece if held and not stop.startswith(held + piece) and stop not in held + piece else held + piece"),
            "After a false alarm",
        ),
        "goes on after it": (stop(out="held = ''; continue"), "nothing of what follows is sent"),
        "a pattern": (stop(find="re.search(stop, text).start()", complete="re.search(stop, text)"), "no pattern"),
        "waits only when all of it is a beginning": (
            stop(hold="len(text) if stop.startswith(text) else 0"),
            "Wait for the next piece",
        ),
        "remembers, and sends all the same": (
            dedent("""
                def until_stop(pieces, stop):
                    seen = ""
                    for piece in pieces:
                        if stop in seen + piece:
                            yield piece[: max(0, (seen + piece).index(stop) - len(seen))]
                            return
                        yield piece
                        seen += piece
            """),
            "The beginning of the stop string went out",
        ),
        "reads on": (stop(out="list(pieces); return"), "Return when it is complete"),
        "all at once": (
            "def until_stop(pieces, stop):\n    return ''.join(pieces).split(stop)[0]",
            "wanted is a generator of pieces",
        ),
        "nothing before the stop": (stop(find="0"), "What stands before the stop string"),
    },
    "make_room": {
        "the first": (room(who="running.pop(0)"), "The one that was let in last goes first"),
        "once": (room(loop="if"), "ask the pool again"),
        "not released": (room(release="one.block_table = []"), "gives its blocks back"),
        "released twice": (
            room(release="[pool.release(block) for block in one.block_table]; release_all(pool, one.block_table)"),
            "A block was released twice",
        ),
        "blocks of 2, always": (
            room(needed="sum(blocks_for(len(s.token_ids), 2) - len(s.block_table) for s in running)"),
            "Nobody goes without need",
        ),
        "table kept": (room(release="[pool.release(block) for block in one.block_table]"), "its table is empty"),
        "still cached": (room(forget="pass"), "Without blocks nothing is cached"),
        "end of the line": (room(wait="waiting.append(one)"), "Who is preempted waits in its place"),
        "out of the line": (room(wait="pass"), "Who is preempted waits in its place"),
        "tokens lost": (room(forget="one.num_cached = 0; del one.token_ids[one.prompt_len :]"), "They stay"),
        "exactly enough is too little": (room(compare=">="), "exactly enough is enough"),
        "one block each": (room(needed="len(running)"), "Nobody goes without need"),
        "a block for every token": (
            room(needed="sum(len(s.token_ids) - s.num_cached for s in running)"),
            "Nobody goes without need",
        ),
        "nobody": (room(loop="while False and"), "There is still no room"),
        "counts before": (
            room(
                free="free",
                first="free = pool.num_free",
                release="free += len(one.block_table); release_all(pool, one.block_table)",
            ),
            "ask the pool again",
        ),
        "a list of its own": (room(first="running = [*running]"), "change the list in place"),
    },
}
