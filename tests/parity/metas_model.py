"""Runs Meta's own model on a checkpoint in Meta's layout: a process for each of its files, as on as many GPUs.

    python metas_model.py DIRECTORY PROMPT LOGITS

Needs `llama-models`, `fairscale`, torch and safetensors, and nothing of ours.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(rank: int, count: int, meeting: str, directory: Path, prompt: Path, out: Path) -> None:
    import fairscale.nn.model_parallel.initialize as parallel
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer
    from safetensors.torch import load_file

    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    parallel.initialize_model_parallel(count)
    given = torch.load(prompt)
    batch, length = given["tokens"].shape
    fields = json.loads((directory / "params.json").read_text())
    model = Transformer(ModelArgs(**fields, max_batch_size=batch, max_seq_len=length)).float()
    file = sorted(directory.glob("consolidated*.safetensors"))[rank]
    model.load_state_dict({name: weight.float() for name, weight in load_file(file).items()}, strict=True)
    parts, start = [], 0
    for part in given["tokens"].split(given["split"], dim=1):
        parts.append(model(part, start))
        start += part.shape[1]
    if rank == 0:
        torch.save(torch.cat(parts, dim=1), out)
    dist.barrier()


if __name__ == "__main__":
    directory, prompt, out = map(Path, sys.argv[1:])
    files = len(list(directory.glob("consolidated*.safetensors")))
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, args=(files, f"{folder}/meeting", directory, prompt, out), nprocs=files)
