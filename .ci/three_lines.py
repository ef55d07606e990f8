"""What a reader types first after installing the package, and what must come of it."""

import torch

import llama3_edu as le

model, tokenizer = le.load_tiny()
prompt = torch.tensor([tokenizer.encode("ROMEO:", bos=True)])
cached = le.generate(model, prompt, max_new_tokens=8, cache=le.ContiguousCache(model.config, max_seq_len=64))

naive = le.generate(model, prompt, max_new_tokens=8)
if not torch.equal(naive, cached):
    raise SystemExit(f"with a cache the model says {cached.tolist()}, without one {naive.tolist()}")
print(tokenizer.decode(cached[0].tolist()))
