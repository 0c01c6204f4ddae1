"""Training throughput of one process and of several: `python -m benchmarks.distributed`.

One program starts the ranks (gloo on CPUs, NCCL on GPUs) and lets one rank alone and all of them take turns, so both
see the same machine. Every rank has the same batch and one thread; a step is forward, loss, backward, the averaging of
gradients, and the optimizer. 1.00 per rank would be perfect. `gather` mixes the batch of all ranks.
"""
from __future__ import annotations

import argparse
import copy
import os
import socket
import statistics
import time
from typing import Any

import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

import timm_multimix
from benchmarks.measure import describe, save

MODES = ('plain', 'multimix', 'multimix, gather', 'dense', 'dense, gather')


def stepper(base: torch.nn.Module, mode: str, images: torch.Tensor, target: torch.Tensor, together: bool) -> Any:
    model = copy.deepcopy(base)
    if mode != 'plain':
        model = timm_multimix.wrap(model, mode.split(',')[0], preset='embeddings', gather=together and 'gather' in mode,
                                   input_size=tuple(images.shape[1:]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    device = [images.device] if images.is_cuda else None
    module = torch.nn.parallel.DistributedDataParallel(model, device_ids=device) if together else model

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            loss = F.cross_entropy(module(images), target) if mode == 'plain' else module(images, target).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if images.is_cuda:
            torch.cuda.synchronize()
    return step


def work(rank: int, args: argparse.Namespace, port: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(args.ranks), MASTER_ADDR='localhost',
                      MASTER_PORT=str(port))
    torch.set_num_threads(1)
    cuda = args.device == 'cuda'
    device = torch.device(f'cuda:{rank}' if cuda else 'cpu')
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group('nccl' if cuda else 'gloo')
    torch.manual_seed(0)
    base = timm.create_model(args.model, num_classes=args.num_classes)
    base = timm_multimix.unwrap(timm_multimix.wrap(base, 'dense')).to(device)  # average pooling for all
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=device)
    target = torch.randint(0, args.num_classes, (args.batch_size,), device=device)
    rows: list[dict[str, Any]] = []
    for mode in args.modes:
        alone, together = (stepper(base, mode, images, target, all_of_them) for all_of_them in (False, True))
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for i in range(args.repeat + 1):
            for all_of_them in (False, True) if i % 2 else (True, False):
                dist.barrier()
                started = time.perf_counter()
                if all_of_them or rank == 0:
                    (together if all_of_them else alone)()
                dist.barrier()  # the others wait, and compute nothing
                if i:
                    seconds[all_of_them].append(time.perf_counter() - started)
        one, many = (args.batch_size * n / statistics.median(seconds[n > 1]) for n in (1, args.ranks))
        rows.append({'mode': mode, 'images per second': {'1': one, str(args.ranks): many}, 'ratio': many / one})
        if rank == 0:
            print(f'| {mode} | {one:.1f} | {many:.1f} | {many / one:.2f}× | {many / one / args.ranks:.2f} |',
                  flush=True)
    if rank == 0:
        save(args.json, {**describe(args.device), 'model': args.model, 'input': list(images.shape),
                         'num_classes': args.num_classes, 'ranks': args.ranks, 'rows': rows})
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('--ranks', type=int, default=max(2, torch.cuda.device_count()))
    parser.add_argument('--model', default='resnet50' if cuda else 'resnet18')
    parser.add_argument('--modes', nargs='+', default=list(MODES), choices=MODES)
    parser.add_argument('--batch-size', type=int, default=128 if cuda else 16, help='of each rank')
    parser.add_argument('--img-size', type=int, default=224 if cuda else 96)
    parser.add_argument('--num-classes', type=int, default=1000 if cuda else 100)
    parser.add_argument('--repeat', type=int, default=20 if cuda else 9)
    parser.add_argument('--device', default='cuda' if cuda else 'cpu')
    parser.add_argument('--json', help='write the figures to this file as well')
    args = parser.parse_args()
    if args.ranks < 2:
        parser.error(f'--ranks is {args.ranks}, but there is one rank to compare with: at least 2')
    with socket.socket() as s:
        s.bind(('localhost', 0))
        port = s.getsockname()[1]
    print(f'{describe(args.device)}; {args.model}, {args.batch_size} images of {args.img_size} pixels on every rank, '
          f'{args.num_classes} classes, medians of {args.repeat}\n\n| | images/s, 1 rank | {args.ranks} ranks | '
          f'ratio | per rank |\n|---|---|---|---|---|', flush=True)
    mp.spawn(work, (args, port), args.ranks)


if __name__ == '__main__':
    main()
