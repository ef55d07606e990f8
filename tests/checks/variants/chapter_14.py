"""Other right answers to the exercises of chapter 14."""

from textwrap import dedent

VARIANTS = {
    "stream_tokens": [
        dedent("""
            def stream_tokens(engine, sequence):
                sent = sequence.prompt_len
                while not sequence.finished or sent < len(sequence.token_ids):
                    if sent == len(sequence.token_ids):
                        engine.step()
                    else:
                        yield sequence.token_ids[sent]
                        sent += 1
        """),
        dedent("""
            def stream_tokens(engine, sequence):
                class Tokens:
                    sent = 0
                    def __iter__(self):
                        return self
                    def __next__(self):
                        while self.sent == sequence.num_new_tokens:
                            if sequence.finished:
                                raise StopIteration
                            engine.step()
                        self.sent += 1
                        return sequence.new_token_ids[self.sent - 1]
                return Tokens()
        """),
    ],
    "until_stop": [
        dedent("""
            def until_stop(pieces, stop):
                text, sent = "", 0
                for piece in pieces:
                    text += piece
                    end = text.find(stop)
                    if end != -1:
                        yield text[sent:end]
                        break
                    safe = len(text)
                    for start in range(len(text)):
                        if stop.startswith(text[start:]):
                            safe = start
                            break
                    if safe > sent:
                        yield text[sent:safe]
                        sent = safe
                else:
                    if sent < len(text):
                        yield text[sent:]
        """),
        dedent("""
            def until_stop(pieces, stop):
                held = ""
                for piece in pieces:
                    for letter in piece:
                        held += letter
                        while held and not stop.startswith(held):
                            yield held[0]
                            held = held[1:]
                        if held == stop:
                            return
                yield from held
        """),
    ],
    "make_room": [
        dedent("""
            def make_room(pool, running, waiting):
                stay = len(running)
                while True:
                    needed = sum(-(-len(s.token_ids) // pool.block_size) - len(s.block_table) for s in running[:stay])
                    if needed <= pool.num_free:
                        break
                    stay -= 1
                    for block in running[stay].block_table:
                        pool.release(block)
                    running[stay].block_table = []
                    running[stay].num_cached = 0
                waiting[:0] = running[stay:]
                del running[stay:]
        """),
        dedent("""
            def make_room(pool, running, waiting):
                def missing(s):
                    return blocks_for(len(s.token_ids), pool.block_size) - blocks_for(s.num_cached, pool.block_size)
                if sum(map(missing, running)) <= pool.num_available:
                    return
                last = running[-1]
                release_all(pool, last.block_table)
                last.num_cached = 0
                running.remove(last)
                waiting.append(last)
                waiting.sort(key=lambda s: s.id)
                make_room(pool, running, waiting)
        """),
    ],
}
