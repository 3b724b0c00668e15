"""Batched linear assignment by shortest augmenting paths in plain torch, with no host branch on data: the definition.

The smaller of a sample's sets, targets or queries, are the rows; each row gets a column. Column prices keep every
matched pair the cheapest of its row by cost minus price. Row by row, Dijkstra's algorithm finds the cheapest path to a
free column, through columns whose rows move to another column.
"""

import torch
from torch import Tensor

LARGEST = 1e100  # larger costs count as infinite


def linear_assignment(cost: Tensor, num_targets: Tensor) -> Tensor:
    """cost [B, Q, T], num_targets int64 [B] -> the query matched with each target, int64 [B, T], -1 for none."""
    B, Q, T = cost.shape
    size, b, k = max(Q, T), torch.arange(B, device=cost.device), torch.arange(max(Q, T), device=cost.device)
    number = num_targets.clamp(0, T)
    rows, columns = number.clamp(max=Q), torch.where(number > Q, number, Q)
    padded = torch.nn.functional.pad(cost.double(), (0, size - T, 0, size - Q))
    given = torch.where((number > Q)[:, None, None], padded, padded.mT)  # [B, rows, columns]
    C = _finite(given, (k < rows[:, None])[:, :, None] & (k < columns[:, None])[:, None])
    price, owner = torch.zeros_like(C[:, 0]), torch.full_like(C[:, 0], -1, dtype=torch.int64)  # [B, columns]
    for row in range(min(Q, T)):
        distance, previous = torch.full_like(price, torch.inf), torch.full_like(owner, -1)
        searching, closed = row < rows, k >= columns[:, None]
        last, line, passed, reached = torch.full_like(rows, -1), C[:, row], *price.new_zeros(2, B)
        for _ in range(row + 1):
            through = line - price - passed[:, None]
            nearer = ~closed & (through < distance) & searching[:, None]
            distance = torch.where(nearer, through, distance)
            previous = torch.where(nearer, last[:, None], previous)
            length = torch.where(closed, torch.inf, distance).amin(1)
            # among equals a free column, then the first
            rank = torch.where(~closed & (distance == length[:, None]), k + size * (owner >= 0), 2 * size)
            last = torch.where(searching, rank.amin(1) % size, last)
            closed = closed | searching[:, None] & (k == last[:, None])
            reached = torch.where(searching, length, reached)
            searching = searching & (owner[b, last] >= 0)
            line = C[b, owner[b, last].clamp(min=0)]
            passed = line[b, last] - price[b, last] - reached
        price = torch.where(closed & (k < columns[:, None]), price + (distance - reached[:, None]), price)
        for _ in range(row + 1):  # back along the path: each column gets the row of its predecessor
            before = torch.where(last >= 0, previous[b, last], -1)
            taken = torch.where(before >= 0, owner[b, before], row)
            owner = torch.where(k == last[:, None], taken[:, None], owner)
            last = before
    allowed = ~(given.gather(1, owner.clamp(min=0)[:, None])[:, 0] > LARGEST) & (owner >= 0)
    of_column = torch.where(allowed, owner, -1)
    of_row = torch.full((B, size + 1), -1, device=cost.device)
    of_row = of_row.scatter(1, torch.where(allowed, owner, size), k.expand(B, -1))
    return torch.where((number > Q)[:, None], of_column[:, :T], of_row[:, :T])


def _finite(given: Tensor, real: Tensor) -> Tensor:
    """+inf is practically forbidden, above any number of last resorts; NaN and -inf are a last resort, above any
    costs."""
    usable = real & (given.abs() <= LARGEST)
    low = torch.where(usable, given, torch.inf).amin((1, 2), keepdim=True)
    spread = torch.where(usable, given, -torch.inf).amax((1, 2), keepdim=True) - low
    low, spread = torch.where(spread >= 0, low, 0.0), torch.where(spread > 0, spread, 1.0)
    factor = 2.0 ** real.shape[1].bit_length()
    last_resort = torch.where(given > LARGEST, low + factor * factor * spread, low + factor * spread)
    return torch.where(usable, given, last_resort)
